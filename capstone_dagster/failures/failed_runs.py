"""What class of failure ended a run: one answer for status, metrics, notices and re-execution."""

from __future__ import annotations

import dagster as dg
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG, WILL_RETRY_TAG

from batch_gpu.jobs import FAILURE_TAG as JOB_FAILURE_TAG
from batch_gpu.jobs import JOB_ID_TAG
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.run_tags import FAILURE_TAG, NO_FAILURE

# Dagster's word on whether it starts a run again is written right behind the failure; where retries are off,
# it is not.
_DECIDED_WITHIN_S = 5.0
# A worker that was told to stop does not know why: the launcher's sensor looks it up within its interval of
# 10 s and writes it into the run's tags.
_EXPLAINED_WITHIN_S = 25.0

# What Dagster says of runs of which no step could speak. Whatever else it says, the worker is gone.
_BY_REASON = {
    RunFailureReason.JOB_INITIALIZATION_FAILURE: FailureClass.INTERNAL,
    RunFailureReason.RUN_EXCEPTION: FailureClass.INTERNAL,
    RunFailureReason.START_TIMEOUT: FailureClass.CAPACITY,
}

# Of a run that Dagster could not even launch, for example because the code cannot be imported.
_FROM_OUTSIDE = "This run has been marked as failed from outside"


def starts_again(run: dg.DagsterRun) -> bool:
    """Whether Dagster itself starts a failed run once more: then nothing has failed for good."""
    return run.tags.get(WILL_RETRY_TAG) == "true"


def retry_is_decided(run: dg.DagsterRun, age_s: float) -> bool:
    """Whether :func:`starts_again` can be asked of a failed run.

    Args:
        age_s: of its failure; negative where the worker's clock is ahead, which tells nothing.
    """
    return WILL_RETRY_TAG in run.tags or not 0 <= age_s < _DECIDED_WITHIN_S


def is_explained(run: dg.DagsterRun, age_s: float) -> bool:
    """Whether the launcher has said why a failed run's worker ended, or has had the time to.

    Args:
        age_s: as above.
    """
    return (
        run.tags.get(RUN_FAILURE_REASON_TAG) != RunFailureReason.UNEXPECTED_TERMINATION.value
        or run.tags.get(JOB_ID_TAG, NO_FAILURE) == NO_FAILURE
        or run.tags.get(JOB_FAILURE_TAG, NO_FAILURE) != NO_FAILURE
        or not 0 <= age_s < _EXPLAINED_WITHIN_S
    )


def class_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> FailureClass:
    """The class of a failed run: as its tag says, which costs nothing to read, else as :func:`failure_of`."""
    told = run.tags.get(FAILURE_TAG, NO_FAILURE)
    return failure_of(instance, run)[0] if told == NO_FAILURE else _named(told)


def failure_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[FailureClass, str]:
    """The class of a failed run and its sentence, from the run's own events.

    A step that failed for a known reason says it. Without one, the launcher is believed, then what kind of
    failure Dagster saw.
    """
    kinds = {
        dg.DagsterEventType.STEP_FAILURE,
        dg.DagsterEventType.RUN_FAILURE,
        dg.DagsterEventType.ENGINE_EVENT,
    }
    told = "The run ended without a word: its worker was lost."
    seen = FailureClass.WORKER_LOST
    before = None  # what went wrong around the run, which its failure does not repeat
    for record in instance.get_records_for_run(run.run_id, of_type=kinds).records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        if event.event_type == dg.DagsterEventType.ENGINE_EVENT:
            error = event.engine_event_data.error
            before = f"{event.message}: {error.message.strip()}" if error is not None else before
            continue
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None:
                known = data.user_failure_data.metadata.get("failure_class")
                cause = data.user_failure_data.metadata.get("cause")
                if known is not None and cause is not None:
                    return _named(str(known.value)), str(cause.value)
            # A worker that was told to end interrupts its step: that is no defect of the step's.
            if data.error_source != ErrorSource.INTERRUPT:
                seen = FailureClass.INTERNAL
        elif isinstance(event.event_specific_data, JobFailureData):
            reason = event.event_specific_data.failure_reason
            seen = _BY_REASON.get(reason, seen) if reason is not None else seen
        told = event.message or told
        if before is not None and told.startswith(_FROM_OUTSIDE):
            told = before
    # A launcher that knows why says so; "none" is what it writes over a parent's.
    by_launcher = run.tags.get(JOB_FAILURE_TAG, NO_FAILURE)
    return seen if by_launcher == NO_FAILURE else _named(by_launcher), told


def _named(word: str) -> FailureClass:
    """The class of that name. Anybody may write a tag: what is none must stop no sensor for ever."""
    return FailureClass(word) if word in set(FailureClass) else FailureClass.INTERNAL
