"""The sensor `vital_signs`: the gauges of what runs, waits, hangs or is given up.

It looks at Dagster's own records and at SQS, never at the event store, which may be what has failed; what
cannot be looked at is left out of a tick and does not hold up the rest. What ended is counted elsewhere, by
the reader of ended runs (`metrics/runs.py`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import dagster as dg

from capstone_dagster.catalog.alarms import DAEMON
from capstone_dagster.catalog.metrics import (
    DEAD_LETTERS,
    HEARTBEAT,
    INTAKE_PAUSED,
    LONGEST_RUN_OVER_LIMIT,
    RUNS_QUEUED,
    SECONDS_WITHOUT_SUCCESS,
    SENSOR_TICK_DURATION,
    SENSOR_TICK_ERRORS,
)
from capstone_dagster.dagster_private import InstigatorStatus, InstigatorType, TickStatus
from capstone_dagster.failures.breaker_state import BREAKER
from capstone_dagster.failures.classes import classify_recorded, recorded_sentence
from capstone_dagster.failures.cursors import read_cursor, to_json
from capstone_dagster.failures.limits import age_over_limit
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.metrics.waiting_messages import Queues, queues_at
from capstone_dagster.settings import Settings

SENSOR_NAME = "vital_signs"

log = logging.getLogger("capstone.vital_signs")

# Of one sensor's ticks between two looks: it ticks every few seconds. Dagster cuts one off after 60 s.
_TICKS_AT_ONCE = 100
_LONGEST_TICK_S = 90.0

# Each of the daemon's loops writes a heartbeat every 30 s.
_SILENT_S = 300.0

# Not what was only put on record: it stays for ever if its submitter died before submitting it.
_IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dataclass(slots=True)
class Cursor:
    """What one tick leaves for the next. Times are seconds since 1970.

    Attributes:
        since: what happened before does not count.
        busy_since: since when there has been something to do; None while there is nothing.
        ticks: sensor → number of its last tick that was counted; ticks_read: when that was.
    """

    since: float
    busy_since: float | None = None
    ticks: dict[str, int] = field(default_factory=dict)
    ticks_read: float = 0.0


@dg.sensor(
    name=SENSOR_NAME,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"services"},
    description="Measures what waits, hangs or is given up: the gauges that no worker can publish of itself.",
)
def vital_signs_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """See the module."""
    services = context.resources.services
    now = time.time()
    cursor = read_cursor(Cursor, context.cursor, lambda: Cursor(since=now))
    queues = None if services.settings.queue_url is None else queues_at(services.settings.queue_url)
    unseen = observe(context.instance, services.settings, services.metrics, cursor, queues, now=now)
    message = f"Could not be looked at: {', '.join(unseen)}." if unseen else "All vital signs are published."
    return dg.SensorResult(skip_reason=dg.SkipReason(message), cursor=to_json(cursor))


def observe(
    instance: dg.DagsterInstance,
    settings: Settings,
    metrics: Metrics,
    cursor: Cursor,
    queues: Queues | None,
    *,
    now: float,
) -> list[str]:
    """Publish everything once; returns the names of what could not be looked at."""
    waiting: int | None = None  # unknown

    def look_at_queues() -> None:
        nonlocal waiting
        if queues is None:
            waiting = 0
        else:
            waiting = queues.waiting()
            metrics.add(DEAD_LETTERS, queues.dead_letters())

    looks: dict[str, Callable[[], None]] = {
        "running runs": lambda: metrics.add(
            LONGEST_RUN_OVER_LIMIT, longest_over_limit(instance, settings, now)
        ),
        "queues": look_at_queues,
        # Behind the queues, whose messages are something to do.
        "work": lambda: _measure_idleness(instance, metrics, cursor, waiting, now),
        "intake": lambda: _publish_pause(instance, metrics),
        "daemon": lambda: _beat(instance, metrics, now),
        "sensor ticks": lambda: _measure_ticks(instance, metrics, cursor, now),
    }
    unseen = []
    for name, look in looks.items():
        try:
            look()
        except Exception as error:  # one that cannot be looked at must not hide the others
            unseen.append(name)
            log.warning(
                f"{name.capitalize()} cannot be looked at: {type(error).__name__}: {error}",
                extra={"action": "look.failed", "source": name},
            )
    return unseen


def longest_over_limit(instance: dg.DagsterInstance, settings: Settings, now: float) -> float:
    """Of the running runs, the greatest ratio of age to limit; 0 while none runs."""
    running = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    return max((age_over_limit(record, settings, now) for record in running), default=0.0)


def _measure_idleness(
    instance: dg.DagsterInstance, metrics: Metrics, cursor: Cursor, waiting: int | None, now: float
) -> None:
    """How long nothing has succeeded although there was something to do all the time.

    Args:
        waiting: messages in the queue; None if that is not known: then what was so last is still so.
    """
    queued = instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
    if waiting or queued or instance.get_runs_count(dg.RunsFilter(statuses=_IN_PROGRESS)):
        cursor.busy_since = cursor.busy_since or now
    elif waiting is not None:
        cursor.busy_since = None
    since = None if cursor.busy_since is None else max(cursor.busy_since, _last_success(instance))
    metrics.add_all(
        {RUNS_QUEUED: queued, SECONDS_WITHOUT_SUCCESS: 0.0 if since is None else max(0.0, now - since)}
    )


def _last_success(instance: dg.DagsterInstance) -> float:
    """When a run last ended well, seconds since 1970; 0 if none has."""
    wanted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])
    newest = instance.get_run_records(wanted, limit=1, order_by="update_timestamp")
    return max((record.end_time or 0.0 for record in newest), default=0.0)


def _beat(instance: dg.DagsterInstance, metrics: Metrics, now: float) -> None:
    """A heartbeat while all of the daemon's loops give theirs: an alarm waits for it.

    That this sensor ticks at all shows that one of them works.
    """
    beats = instance.get_daemon_heartbeats()
    for name in instance.get_required_daemon_types():
        silent_s = now - beats[name].timestamp if name in beats else math.inf
        if silent_s > _SILENT_S:
            log.warning(
                f"The daemon's loop {name} has been silent for {silent_s:.0f} s.",
                extra={"action": "heartbeat.missed"},
            )
            return
    metrics.add(HEARTBEAT, service=DAEMON)


def _publish_pause(instance: dg.DagsterInstance, metrics: Metrics) -> None:
    breaker = BREAKER.read(instance)
    if breaker.paused and breaker.cause is not None:
        metrics.add(INTAKE_PAUSED, 1, failure_class=breaker.cause)
    else:
        metrics.add(INTAKE_PAUSED, 0)


def _measure_ticks(instance: dg.DagsterInstance, metrics: Metrics, cursor: Cursor, now: float) -> None:
    """Of each sensor the ticks that have ended since the last look."""
    after = max(cursor.since, cursor.ticks_read - _LONGEST_TICK_S)
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        if state.status == InstigatorStatus.STOPPED:
            continue
        name = state.instigator_name
        ticks = instance.get_ticks(
            state.instigator_origin_id, state.selector_id, after=after, limit=_TICKS_AT_ONCE
        )
        # A sensor's ticks come one after the other, so one that has not ended is its last.
        ended = [tick for tick in ticks if tick.status != TickStatus.STARTED]
        for tick in ended:
            if tick.tick_id > cursor.ticks.get(name, 0):
                took = max(0.0, (tick.end_timestamp or tick.timestamp) - tick.timestamp)
                failed = tick.status == TickStatus.FAILURE
                metrics.add_all({SENSOR_TICK_DURATION: took, SENSOR_TICK_ERRORS: failed}, sensor=name)
                if tick.error is not None:
                    log.error(
                        f"A tick of {name} failed: {recorded_sentence(tick.error)}",
                        extra={
                            "action": "tick.failed",
                            "sensor": name,
                            "failure_class": classify_recorded(tick.error),
                            "exception": tick.error.to_string(),
                        },
                    )
        cursor.ticks[name] = max([cursor.ticks.get(name, 0), *(tick.tick_id for tick in ended)])
    cursor.ticks_read = now
