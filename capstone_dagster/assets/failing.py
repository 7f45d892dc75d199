"""Failures of ops and runs, in the words of the failure list: in the run, its tags and the event store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg

from capstone_dagster.observability.failures import POLICIES, FailureClass, classify, sentence
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageError

FAILURE_TAG = "capstone/failure"
UPLOAD_TAG = "capstone/upload_id"


@dataclass(slots=True)
class FailureSubject:
    """Whose failure it would be; the upload is known to an op only after it has looked."""

    upload_id: str | None = None


@contextmanager
def explained(
    context: dg.OpExecutionContext, services: Services, upload_id: str | None = None
) -> Iterator[FailureSubject]:
    """Turn whatever goes wrong in an op into a Dagster failure with class, cause and remedy.

    Transient classes may be retried by the op's policy; the others end the run at once. After the last try,
    the upload's status says failed, and why.
    """
    subject = FailureSubject(upload_id or context.run.tags.get(UPLOAD_TAG))
    try:
        yield subject
    except Exception as error:
        failure = classify(error)
        policy, told = POLICIES[failure], sentence(error)
        retries = context.op_def.retry_policy.max_retries if context.op_def.retry_policy else 0
        last_try = retries == 0 or context.retry_number >= retries
        if last_try or not policy.transient:
            if context.instance.has_run(context.run_id):  # an op called on its own, as in a test, has none
                context.instance.add_run_tags(context.run_id, {FAILURE_TAG: failure.value})
            if subject.upload_id:
                _mark_failed(context, services, subject.upload_id, failure, told)
        raise dg.Failure(
            description=f"{failure.value}: {told} What to do: {policy.remedy}",
            metadata={"failure_class": failure.value, "cause": told, "remedy": policy.remedy},
            allow_retries=policy.transient,
        ) from error


def _mark_failed(
    context: dg.OpExecutionContext, services: Services, upload_id: str, failure: FailureClass, told: str
) -> None:
    try:
        services.events.mark_failed(upload_id, context.run_id, failure_class=failure.value, message=told)
    except StorageError as error:
        # The sensor below says it when the database is back.
        context.log.warning(f"The failure could not be written to the event store: {error}")


@dg.run_failure_sensor(
    name="failure_status_sensor",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes failures into video_status that the failing run could not write itself: lost "
    "workers, an event store that was away.",
)
def failure_status_sensor(
    context: dg.RunFailureSensorContext, services: dg.ResourceParam[Services]
) -> dg.SkipReason | None:
    run = context.dagster_run
    upload_id = run.tags.get(UPLOAD_TAG)
    if upload_id is None:
        return dg.SkipReason("The run is none of an upload.")
    known = run.tags.get(FAILURE_TAG)
    failure = FailureClass(known) if known in set(FailureClass) else FailureClass.WORKER_LOST
    message = context.failure_event.message or "The run failed without a word."
    services.events.mark_failed(
        upload_id, run.run_id, failure_class=failure.value, message=message, only_if_unfinished=True
    )
    return None


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    name="cancellation_status_sensor",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes into video_status that an operator cancelled an upload's run.",
)
def cancellation_status_sensor(
    context: dg.RunStatusSensorContext, services: dg.ResourceParam[Services]
) -> dg.SkipReason | None:
    upload_id = context.dagster_run.tags.get(UPLOAD_TAG)
    if upload_id is None:
        return dg.SkipReason("The run is none of an upload.")
    services.events.mark_cancelled(upload_id, context.dagster_run.run_id)
    return None
