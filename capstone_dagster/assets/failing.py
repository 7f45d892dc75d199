"""Failures of ops and runs, in the words of the failure list: in the run, its tags and the event store."""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import dagster as dg

from batch_gpu.jobs import is_cancelled
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.failures.classes import POLICIES, FailureClass, classify, sentence
from capstone_dagster.failures.retry_policy import will_try_again
from capstone_dagster.failures.step_retries import clear_retry, note_retry, retry_of
from capstone_dagster.failures.verdicts import failed_run
from capstone_dagster.run_tags import FAILURE_TAG, NO_FAILURE, UPLOAD_TAG
from capstone_dagster.runs.failed_partitions import report_failed_partitions
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.video_status import UploadCancelled, mark_failed, mark_superseded

# Transient faults get two more tries within the run, some 5 and 10 s apart: long enough for a failover's
# first seconds, short enough not to hold a GPU for a database. Asked for failure by failure, not set on the
# ops: Dagster takes an op's own policy for interruptions, too, and a run could then not be ended.
RETRY = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

_log = logging.getLogger("capstone.analysis")

# No video can be analysed until an operator has corrected these; other classes may concern one video.
_CANNOT_WORK = {
    FailureClass.MODEL_UNAVAILABLE,
    FailureClass.PERMISSION_DENIED,
    FailureClass.CONFIGURATION,
}


@dataclass(slots=True)
class FailureSubject:
    """The upload that a failure belongs to; an op that looks its upload up sets `log` afterwards."""

    log: AnalysisLog | None
    tags: Mapping[str, str]


def as_failure(error: Exception, *, final: Collection[FailureClass] = ()) -> dg.Failure:
    """A Dagster failure that says class, cause and remedy; only transient classes may be retried.

    Args:
        final: classes that are not to be retried here although they are transient.
    """
    failure = classify(error)
    policy, cause_text = POLICIES[failure], sentence(error)
    return dg.Failure(
        description=f"{failure.value}: {cause_text} What to do: {policy.remedy}",
        metadata={"failure_class": failure.value, "cause": cause_text, "remedy": policy.remedy},
        allow_retries=policy.transient and failure not in final,
    )


@contextmanager
def explained(
    context: dg.OpExecutionContext,
    services: Services,
    log: AnalysisLog | None = None,
    *,
    final: Collection[FailureClass] = (),
) -> Iterator[FailureSubject]:
    """Turn any exception of an op into :func:`as_failure`, or have Dagster retry the op.

    The log says what failed, why and what to do; after the last try the run's tag and the upload's status
    do, too.
    """
    tags = run_tags(context)
    subject = FailureSubject(log, tags)
    if tags.get(FAILURE_TAG, NO_FAILURE) != NO_FAILURE:
        with _on_record(context):
            context.instance.add_run_tags(context.run_id, {FAILURE_TAG: NO_FAILURE})
    retry = retry_of(context.run_id, tags)
    try:
        if is_cancelled(context.run_id, tags):
            raise UploadCancelled("The run was cancelled.")
        yield subject
    except UploadCancelled as cancelled:
        _end_as_cancelled(context, cancelled)
    except Exception as error:
        failure = as_failure(error, final=final)
        tries_left = _tries_left(context) if failure.allow_retries else 0
        log_failure(context, subject.log, error, tries_left=tries_left)
        if not tries_left:
            upload_id = subject.log.upload_id if subject.log else tags.get(UPLOAD_TAG)
            record_failure(context, services, upload_id, classify(error), sentence(error))
            raise failure from error
        note_retry(context.instance, context.run_id, retry, classify(error), sentence(error))
        raise dg.RetryRequested(
            RETRY.max_retries, RETRY.calculate_delay(context.retry_number + 1)
        ) from failure
    if retry is not None:
        clear_retry(context.instance, context.run_id)


def _end_as_cancelled(context: dg.OpExecutionContext, cancelled: UploadCancelled) -> NoReturn:
    """End the run as a stop signal would, which it has not received yet or has lost."""
    run = context.instance.get_run_by_id(context.run_id)
    if run is not None and not run.is_finished and run.status != dg.DagsterRunStatus.CANCELING:
        context.instance.report_run_canceling(run, str(cancelled))
    raise dg.DagsterExecutionInterruptedError(str(cancelled)) from cancelled


def log_failure(
    context: dg.OpExecutionContext,
    log: AnalysisLog | None,
    error: Exception,
    *,
    tries_left: int = 0,
    video_id: str | None = None,
) -> None:
    """Say in the log what failed, why, and what to do about it, or that it is tried again.

    Args:
        log: None where the upload is not known; `video_id` may be.
    """
    failure, cause = classify(error), sentence(error)
    remedy = POLICIES[failure].remedy
    fields: dict[str, Any] = {"failure_class": failure.value, "cause": cause, "tries_left": tries_left}
    if tries_left:
        action, level = "analysis.retried", logging.WARNING
        message = f"{failure.value}: {cause} It is tried again."
    else:
        action, level = "analysis.failed", logging.CRITICAL if failure in _CANNOT_WORK else logging.ERROR
        message = f"Video analysis failed: {failure.value}: {cause} What to do: {remedy}"
        fields["remedy"] = remedy
    if log is not None:
        log.write(message, action=action, level=level, **fields)
    else:
        known = {"video_id": video_id} if video_id else {}
        with contextlib.suppress(Exception):  # as the video's log does
            context.log.log(level, message, extra={"action": action, **fields, **known})


@contextmanager
def _on_record(context: dg.OpExecutionContext) -> Iterator[None]:
    """Write to Dagster's storage what only observers miss: where it does not answer, a line says so.

    The reader of ended runs writes it when the storage is back.
    """
    try:
        yield
    except Exception as error:  # law: an error handler cannot fail
        _warn(context, "failure.unrecorded", "A failure is not on record in Dagster's storage", error)


def _warn(context: dg.OpExecutionContext, action: str, message: str, error: Exception) -> None:
    extra = {"action": action, "run_id": context.run_id, "failure_class": classify(error).value}
    _log.warning(f"{message}: {sentence(error)}", extra=extra)


def _tries_left(context: dg.OpExecutionContext) -> int:
    with _on_record(context):
        # An op called on its own, as in a test, is not tried again, and cannot say how often it was.
        if not context.instance.has_run(context.run_id):
            return 0
    return max(0, RETRY.max_retries - context.retry_number)


def run_tags(context: dg.OpExecutionContext) -> Mapping[str, str]:
    """The tags of the run that an op is part of; an op called on its own, as in a test, has none."""
    run = context.instance.get_run_by_id(context.run_id)
    return run.tags if run is not None else {}


def record_failure(
    context: dg.OpExecutionContext,
    services: Services,
    upload_id: str | None,
    failure: FailureClass,
    message: str,
    *,
    video_id: str | None = None,
) -> None:
    """Write a final failure to the run's tags, its partitions and, if it is known, the upload's status.

    A worker whose run is over already, because it was considered lost, records nothing: another run may
    have finished the upload.

    Args:
        video_id: the one that failed; None: all that the run has not finished.
    """
    run = None
    with _on_record(context):
        run = context.instance.get_run_by_id(context.run_id)
        if run is not None and run.is_finished:
            return
        if run is not None:
            context.instance.add_run_tags(context.run_id, {FAILURE_TAG: failure.value})
            failed = [video_id] if video_id else partitions_of(context)
            report_failed_partitions(context.instance, run, failed, failure, message)
    if upload_id is None:
        return
    try:
        if failure == FailureClass.SOURCE_CHANGED:
            services.database.transact(mark_superseded, upload_id, context.run_id)
        else:
            services.database.transact(
                mark_failed,
                upload_id,
                context.run_id,
                failure_class=failure.value,
                message=message,
                tried_again=run is not None
                and will_try_again(
                    failed_run(run, failure, time.time()), services.settings.reexecutions_per_video
                ),
            )
    except StorageError as error:
        # The reader of ended runs writes it when the database is back.
        _warn(context, "status.lost", "The failure could not be written to the event store", error)


def partitions_of(context: dg.OpExecutionContext) -> Sequence[str]:
    """The partitions that an op's run is for; none where it has no partition."""
    if context.has_partition_key_range:
        return context.partition_keys
    return [context.partition_key] if context.has_partition_key else []
