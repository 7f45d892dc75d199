"""What became of an ended run: one typed verdict, which alerts, retries, pause, metrics and traces follow.

Class and cause are read as data: from the metadata of the step that failed, from the launcher's tags, from
the recorded class names of errors. Nothing is recognised by its wording.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import dagster as dg

from batch_gpu.jobs import CAUSE_TAG, JOB_ID_TAG, LOG_STREAM_TAG, RECLAIMED_TAG, is_cancelled
from batch_gpu.jobs import FAILURE_TAG as JOB_FAILURE_TAG
from capstone_dagster.dagster_private import (
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    ROOT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    ErrorSource,
    JobFailureData,
    RunFailureReason,
    StepFailureData,
)
from capstone_dagster.failures.breaker_state import BreakerState
from capstone_dagster.failures.classes import (
    POLICIES,
    FailureClass,
    classify_recorded,
    recorded_sentence,
)
from capstone_dagster.failures.duplicates import doubled_work
from capstone_dagster.failures.requests import attempts, failed_before, is_kept_going
from capstone_dagster.failures.retry_policy import Budget, Decision, FailedRun, Leave, judge, outlook
from capstone_dagster.failures.run_steps import PASS_STEP, has_pass, pass_config
from capstone_dagster.run_tags import (
    DETECTION_TAG,
    EXTERNAL_ID_TAG,
    FAILURE_TAG,
    NO_FAILURE,
    STORED_TAG,
    UPLOAD_TAG,
    VIDEO_TAG,
)

# A worker that receives a stop signal does not get the reason: the launcher asks AWS within its interval of
# 10 s and writes it into the run's tags.
_EXPLAINED_WITHIN_S = 25.0
_LEAVE = Leave()
_BY_REASON = {
    RunFailureReason.JOB_INITIALIZATION_FAILURE: FailureClass.INTERNAL,
    RunFailureReason.RUN_EXCEPTION: FailureClass.INTERNAL,
    RunFailureReason.START_TIMEOUT: FailureClass.CAPACITY,
}
_SENTENCES = {
    RunFailureReason.UNEXPECTED_TERMINATION: "Its worker received a stop signal.",
    RunFailureReason.RUN_WORKER_RESTART: "Its worker was restarted in the middle of the run.",
    RunFailureReason.START_TIMEOUT: "Its worker did not begin the run in time.",
    RunFailureReason.JOB_INITIALIZATION_FAILURE: "The run could not be prepared.",
}
_READ = {
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELING,
    dg.DagsterEventType.ENGINE_EVENT,
}


class Outcome(StrEnum):
    """How a run ended. A run that an operator cancelled is `canceled`, however Dagster reports its end."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a run failed.

    Attributes:
        sentence: what an operator reads.
    """

    failure: FailureClass
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that follows from a run's end. Times are seconds since 1970.

    Attributes:
        job: its name in Dagster.
        started_at: when its worker began, else when it ended.
        waited_s: from its request to its worker's begin; None: none began.
        cause: of a failed run alone.
        attempt: 1 for the first run of a request; each later run of it counts on.
        decision: what was decided of a failed run: start it again, wait, or leave it.
        outlook: the decision in one sentence, the same for status and notice.
        whole: the pass over the pixels was part of it.
        own_model: its request named another model than the configured one.
        doubled: it passed over pixels that another run had finished or was at.
        gpu_s: how long its pass held a place in the pool `gpu`; `wasted_s` the part without usable results.
        job_id: the job of AWS Batch, where there was one; `log_stream` the name of its log.
    """

    run_id: str
    job: str
    outcome: Outcome
    started_at: float
    ended_at: float
    cause: Cause | None = None
    attempt: int = 1
    decision: Decision = _LEAVE
    outlook: str = ""
    video_id: str | None = None
    upload_id: str | None = None
    external_id: str | None = None
    run_key: str | None = None
    parent_run_id: str | None = None
    whole: bool = True
    own_model: bool = False
    doubled: bool = False
    gpu_s: float = 0.0
    wasted_s: float = 0.0
    job_id: str | None = None
    log_stream: str | None = None
    waited_s: float | None = None

    @property
    def failure(self) -> FailureClass | None:
        return None if self.cause is None else self.cause.failure

    @property
    def remedy(self) -> str:
        """What an operator does next; empty unless it failed."""
        return "" if self.cause is None else POLICIES[self.cause.failure].remedy


def is_explained(run: dg.DagsterRun, age_s: float) -> bool:
    """Whether the launcher has recorded why a failed run's worker ended, or has had the time to.

    Args:
        age_s: of its failure; negative where the worker's clock is ahead, which proves nothing.
    """
    return (
        run.tags.get(RUN_FAILURE_REASON_TAG) != RunFailureReason.UNEXPECTED_TERMINATION.value
        or run.tags.get(JOB_ID_TAG, NO_FAILURE) == NO_FAILURE
        or run.tags.get(JOB_FAILURE_TAG, NO_FAILURE) != NO_FAILURE
        or not 0 <= age_s < _EXPLAINED_WITHIN_S
    )


def verdict_of(
    instance: dg.DagsterInstance, record: dg.RunRecord, *, breaker: BreakerState, budget: Budget, now: float
) -> Verdict:
    """The verdict on a run that has ended."""
    run = record.dagster_run
    ended_at = record.end_time or record.update_timestamp.timestamp()
    outcome, cause = outcome_of(instance, record)
    decision: Decision = _LEAVE
    if cause is not None:
        decision = judge(failed_run(run, cause.failure, ended_at), breaker, budget, now)
    gpu_s = _gpu_seconds(instance, run, ended_at) if record.start_time is not None and has_pass(run) else 0.0
    doubled = doubled_work(run)
    kept = run.tags.get(STORED_TAG, "") == run.tags.get(DETECTION_TAG, NO_FAILURE)
    lost = doubled or (outcome != Outcome.SUCCEEDED and not kept)
    return Verdict(
        run_id=run.run_id,
        job=run.job_name,
        outcome=outcome,
        started_at=record.start_time or ended_at,
        ended_at=ended_at,
        cause=cause,
        attempt=_attempt(instance, run),
        decision=decision,
        outlook="" if cause is None else outlook(decision, cause.failure),
        video_id=run.tags.get(VIDEO_TAG) or run.tags.get(PARTITION_NAME_TAG),
        upload_id=run.tags.get(UPLOAD_TAG),
        external_id=run.tags.get(EXTERNAL_ID_TAG),
        run_key=run.tags.get(RUN_KEY_TAG),
        parent_run_id=run.tags.get(PARENT_RUN_ID_TAG),
        whole=has_pass(run),
        own_model=pass_config(run.run_config).get("model") is not None,
        doubled=doubled,
        gpu_s=gpu_s,
        wasted_s=gpu_s if lost else 0.0,
        job_id=_own(run, JOB_ID_TAG),
        log_stream=_own(run, LOG_STREAM_TAG),
        waited_s=_waited(record),
    )


def _waited(record: dg.RunRecord) -> float | None:
    if record.start_time is None:
        return None
    return max(0.0, record.start_time - record.create_timestamp.timestamp())


def failed_run(run: dg.DagsterRun, failure: FailureClass, ended_at: float) -> FailedRun:
    """What the retry policy asks of a failed run."""
    return FailedRun(
        run.run_id,
        run.tags.get(UPLOAD_TAG),
        failure,
        ended_at,
        attempts(run.tags),
        job=run.job_name,
        kept_going=is_kept_going(run),
        before=failed_before(run.tags),
        reclaimed=run.tags.get(RECLAIMED_TAG) == "true",
    )


def outcome_of(instance: dg.DagsterInstance, record: dg.RunRecord) -> tuple[Outcome, Cause | None]:
    """How a run ended, and the cause if it failed, from its own events.

    The failed step's own reason comes first, then the launcher's, then what Dagster recorded around the run.
    """
    run = record.dagster_run
    if run.status == dg.DagsterRunStatus.SUCCESS:
        return Outcome.SUCCEEDED, None
    if run.status == dg.DagsterRunStatus.CANCELED or is_cancelled(run.run_id, run.tags):
        return Outcome.CANCELED, None
    seen = Cause(FailureClass.WORKER_LOST, "Its worker ended without reporting an end.")
    not_launched: Cause | None = None
    explained: Cause | None = None
    for entry in instance.get_records_for_run(run.run_id, of_type=_READ).records:
        event = entry.event_log_entry.dagster_event
        if event is None:
            continue
        if event.event_type == dg.DagsterEventType.RUN_CANCELING:
            # Dagster reports a run that is cancelled before its worker begins as failed.
            return Outcome.CANCELED, None
        data = event.event_specific_data
        if event.event_type == dg.DagsterEventType.ENGINE_EVENT:
            error = event.engine_event_data.error
            if error is not None and record.start_time is None:
                failure = classify_recorded(error) or FailureClass.CONTAINER_START
                not_launched = Cause(failure, f"{event.message}: {recorded_sentence(error)}")
        elif isinstance(data, StepFailureData):
            explained = explained or _explained_step(data)
            # A worker that receives a stop signal interrupts its step: that is no defect of the step.
            if data.error_source != ErrorSource.INTERRUPT and data.error is not None:
                known = classify_recorded(data.error) or FailureClass.INTERNAL
                seen = Cause(known, recorded_sentence(data.error))
        elif isinstance(data, JobFailureData):
            seen = _of_run(data, event.message, seen)
    by_worker = run.tags.get(FAILURE_TAG, NO_FAILURE)
    if by_worker != NO_FAILURE:
        seen = Cause(FailureClass(by_worker), seen.sentence)
    by_launcher = run.tags.get(JOB_FAILURE_TAG, NO_FAILURE)
    if by_launcher != NO_FAILURE:  # "none" is what it writes over a parent's
        recorded = run.tags.get(CAUSE_TAG, NO_FAILURE)
        seen = Cause(FailureClass(by_launcher), seen.sentence if recorded == NO_FAILURE else recorded)
    elif not_launched is not None:
        seen = not_launched
    return Outcome.FAILED, explained or seen


def keep_class(instance: dg.DagsterInstance, verdict: Verdict) -> None:
    """Write a failed run's class into its tag, where its worker could not."""
    if verdict.failure is not None:
        instance.add_run_tags(verdict.run_id, {FAILURE_TAG: verdict.failure.value})


def _explained_step(data: StepFailureData) -> Cause | None:
    """What the failed step itself left: the metadata of its `Failure`."""
    if data.user_failure_data is None:
        return None
    metadata = data.user_failure_data.metadata
    failure, cause = metadata.get("failure_class"), metadata.get("cause")
    if failure is None or cause is None:
        return None
    return Cause(FailureClass(str(failure.value)), str(cause.value))


def _of_run(data: JobFailureData, message: str | None, seen: Cause) -> Cause:
    if data.failure_reason == RunFailureReason.STEP_FAILURE:
        return seen
    failure = classify_recorded(data.error) if data.error is not None else None
    if failure is None and data.failure_reason is not None:
        failure = _BY_REASON.get(data.failure_reason)
    if data.error is not None:
        return Cause(failure or seen.failure, recorded_sentence(data.error))
    known = _SENTENCES.get(data.failure_reason) if data.failure_reason is not None else None
    return Cause(failure or seen.failure, known or message or seen.sentence)


def _attempt(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int:
    """1 for a first run; for one started again, its place among the runs of its root."""
    root = run.tags.get(ROOT_RUN_ID_TAG)
    if root is None:
        return 1
    family = instance.get_run_records(dg.RunsFilter(tags={ROOT_RUN_ID_TAG: root}), limit=100, ascending=True)
    ids = [record.dagster_run.run_id for record in family if record.dagster_run.run_id != root]
    return 2 + ids.index(run.run_id) if run.run_id in ids else 2


def _gpu_seconds(instance: dg.DagsterInstance, run: dg.DagsterRun, ended_at: float) -> float:
    seconds = 0.0
    for step in instance.get_run_step_stats(run.run_id, [PASS_STEP]):
        for attempt in step.attempts_list:
            seconds += max(0.0, (attempt.end_time or ended_at) - (attempt.start_time or ended_at))
        if step.partial_attempt_start is not None:  # its worker was lost in the middle of it
            seconds += max(0.0, ended_at - step.partial_attempt_start)
    return seconds


def _own(run: dg.DagsterRun, tag: str) -> str | None:
    value = run.tags.get(tag, NO_FAILURE)
    return None if value == NO_FAILURE else value
