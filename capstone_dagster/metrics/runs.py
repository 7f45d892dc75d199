"""The metrics of runs: started, succeeded, failed by class, duration, and the GPU time that was wasted."""

from __future__ import annotations

from collections.abc import Sequence

from capstone_dagster.catalog.metrics import (
    LEG_DURATION,
    RUN_DURATION,
    RUNS_FAILED,
    RUNS_STARTED,
    RUNS_SUCCEEDED,
    STARTED,
    WASTED_GPU_SECONDS,
)
from capstone_dagster.failures.verdicts import Outcome, Verdict
from capstone_dagster.metrics.emission import Metrics


def publish(metrics: Metrics, started: int, verdicts: Sequence[Verdict]) -> None:
    """Publish what happened since the last time; zeros too, because rates need them."""
    succeeded = sum(verdict.outcome == Outcome.SUCCEEDED for verdict in verdicts)
    metrics.add_all({RUNS_STARTED: started, RUNS_SUCCEEDED: succeeded})
    metrics.add(RUNS_FAILED, 0)
    for verdict in verdicts:
        if verdict.failure is not None:
            metrics.add(RUNS_FAILED, failure_class=verdict.failure.value)
        if verdict.outcome != Outcome.CANCELED and verdict.ended_at > verdict.started_at:
            metrics.add(RUN_DURATION, verdict.ended_at - verdict.started_at)
        if verdict.waited_s is not None:
            metrics.add(LEG_DURATION, verdict.waited_s, leg=STARTED)
        if verdict.wasted_s:
            metrics.add(WASTED_GPU_SECONDS, verdict.wasted_s)
