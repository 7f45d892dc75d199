"""The sensor that turns ended runs into spans; it rests where no collector is named."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import dagster as dg

from .runs import spans_of_run
from .tracer import Tracer

# Runs whose end is written down late, by a clock that differs a little, are not missed.
_OVERLAP_S = 60.0
# Of what ended before the sensor first looked, no more than this is recorded.
_LOOK_BACK_S = 3600.0
_RUNS_A_TICK = 200
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class Needs(Protocol):
    """What the sensor uses of what the code location shares."""

    @property
    def tracer(self) -> Tracer: ...


@dg.sensor(
    name="run_traces",
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"services"},
    description="Records ended runs as spans of their videos' traces, if a collector is named by "
    "OTEL_EXPORTER_OTLP_ENDPOINT.",
)
def run_traces_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """See the module."""
    tracer = cast(Needs, context.resources.services).tracer
    if not tracer.enabled:
        return dg.SkipReason("No collector is named: OTEL_EXPORTER_OTLP_ENDPOINT is not set.")
    cursor, told = record_ended(context.instance, tracer, context.cursor)
    context.update_cursor(cursor)
    return dg.SkipReason(f"{told} runs recorded.")


def record_ended(instance: dg.DagsterInstance, tracer: Tracer, cursor: str | None) -> tuple[str, int]:
    """Record the runs that ended since the last look; returns the next cursor and how many there were.

    A run whose tags change later is met again: its spans are then the same, under the same ids.
    """
    last: dict[str, Any] = {"until": time.time() - _LOOK_BACK_S, "seen": {}}
    last.update(json.loads(cursor or "{}"))
    records = instance.get_run_records(
        dg.RunsFilter(statuses=_ENDED, updated_after=datetime.fromtimestamp(last["until"] - _OVERLAP_S, UTC)),
        # Those in the overlap are met again each time, and must not fill it.
        limit=_RUNS_A_TICK + len(last["seen"]),
        order_by="update_timestamp",
        ascending=True,
    )
    fresh = [record for record in records if record.dagster_run.run_id not in last["seen"]]
    for record in fresh:
        run = record.dagster_run
        stats, steps = instance.get_run_stats(run.run_id), instance.get_run_step_stats(run.run_id)
        for span in spans_of_run(run, stats, steps):
            tracer.record(span)
    updated = {record.dagster_run.run_id: record.update_timestamp.timestamp() for record in fresh}
    until = max([last["until"], *updated.values()])
    seen = {**last["seen"], **updated}
    kept = {run_id: at for run_id, at in seen.items() if at > until - _OVERLAP_S}
    return json.dumps({"until": until, "seen": kept}), len(fresh)
