"""The spans of a run that has ended, from Dagster's own record of it: nothing that a lost worker could take
along. What happens within a step is recorded by the worker, as children of the step's span.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from capstone_dagster.run_tags import EXTERNAL_ID_TAG, FAILURE_TAG, TRACEPARENT_TAG, UPLOAD_TAG, VIDEO_TAG

from .context import TraceContext, parse_traceparent, upload_context
from .tracer import Span, Tracer

if TYPE_CHECKING:
    import dagster as dg

    from capstone_dagster.dagster_private import DagsterRunStatsSnapshot, RunStepKeyStatsSnapshot

_COPIED_TAGS = {
    VIDEO_TAG: "capstone.video_id",
    EXTERNAL_ID_TAG: "capstone.external_id",
    UPLOAD_TAG: "capstone.upload_id",
    FAILURE_TAG: "capstone.failure",
    "batch_gpu/job_id": "batch.job_id",
    "batch_gpu/job_queue": "batch.job_queue",
    "dagster/partition": "dagster.partition",
    "dagster/parent_run_id": "dagster.parent_run_id",
    "dagster/root_run_id": "dagster.root_run_id",
}


def record_runs(instance: dg.DagsterInstance, tracer: Tracer, records: Iterable[dg.RunRecord]) -> int:
    """Record ended runs as spans, if a collector is named; returns how many were.

    The same run's spans are the same each time, under the same ids.
    """
    if not tracer.enabled:
        return 0
    count = 0
    for record in records:
        run = record.dagster_run
        stats, steps = instance.get_run_stats(run.run_id), instance.get_run_step_stats(run.run_id)
        for span in spans_of_run(run, stats, steps):
            tracer.record(span)
        count += 1
    return count


def trace_of(tags: Mapping[str, str]) -> TraceContext | None:
    """The span that a run follows from: its upload's; None for a run of no upload's."""
    context = parse_traceparent(tags.get(TRACEPARENT_TAG))
    if context is not None:
        return context
    upload_id = tags.get(UPLOAD_TAG)
    return upload_context(upload_id) if upload_id else None


def step_context(upload: TraceContext, run_id: str, step_key: str, attempt: int) -> TraceContext:
    """The span of one attempt, counted from 0, at a run's step."""
    return upload.child("run", run_id).child("step", step_key, str(attempt))


def spans_of_run(
    run: dg.DagsterRun, stats: DagsterRunStatsSnapshot, steps: Sequence[RunStepKeyStatsSnapshot]
) -> list[Span]:
    """The run, its waiting, its launch and its steps; nothing for a run of no upload's, or without an end."""
    upload = trace_of(run.tags)
    begun = _first(stats.enqueued_time, stats.launch_time, stats.start_time)
    if upload is None or begun is None or stats.end_time is None:
        return []
    context = upload.child("run", run.run_id)
    attributes = {name: run.tags[tag] for tag, name in _COPIED_TAGS.items() if tag in run.tags}
    failure = run.tags.get(FAILURE_TAG, "none")
    failed = run.status.value == "FAILURE"
    error = (failure if failure != "none" else "the run failed") if failed else None
    whole = Span(
        f"run {run.job_name}",
        context,
        upload,
        begun,
        stats.end_time,
        {**attributes, "dagster.run_id": run.run_id, "dagster.status": run.status.value},
        error,
    )
    return [whole, *_waiting(context, stats), *_steps(upload, run.run_id, context, steps, stats.end_time)]


def _waiting(context: TraceContext, stats: DagsterRunStatsSnapshot) -> Iterator[Span]:
    ended = _first(stats.start_time, stats.end_time)
    if stats.enqueued_time is not None and (until := _first(stats.launch_time, ended)) is not None:
        yield Span("wait for a place", context.child("queue"), context, stats.enqueued_time, until)
    if stats.launch_time is not None and ended is not None:
        yield Span("launch the worker", context.child("launch"), context, stats.launch_time, ended)


def _steps(
    upload: TraceContext,
    run_id: str,
    context: TraceContext,
    steps: Sequence[RunStepKeyStatsSnapshot],
    run_ended: float,
) -> Iterator[Span]:
    for step in steps:
        attempts = [
            (marker.start_time, marker.end_time)
            for marker in step.attempts_list
            if marker.start_time is not None
        ]
        for number, (began, ended) in enumerate(attempts):
            last = number == len(attempts) - 1
            status = step.status.value if step.status is not None else "unfinished"
            # An attempt that is not the last was tried again; one without an end died with its worker.
            error = None if last and status == "SUCCESS" else "tried again" if not last else status.lower()
            yield Span(
                step.step_key.rsplit(".", 1)[-1],
                step_context(upload, run_id, step.step_key, number),
                context,
                began,
                ended if ended is not None else run_ended,
                {"dagster.step_key": step.step_key, "dagster.attempt": number + 1},
                error,
            )


def _first(*times: float | None) -> float | None:
    return next((time for time in times if time is not None), None)
