"""Bring `video_status` up to date with runs that could not do so themselves.

Both records are compared afresh each time: no upload stays unfinished without a live run, and a comparison
that fails loses nothing.
"""

from __future__ import annotations

import time

import dagster as dg

from batch_gpu.jobs import STATUS_TAG
from capstone_dagster.dagster_private import PARTITION_NAME_TAG
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.retry_policy import will_try_again
from capstone_dagster.failures.verdicts import Cause, failed_run, is_explained, outcome_of
from capstone_dagster.run_tags import FAILURE_TAG
from capstone_dagster.runs.failed_partitions import report_failed_partitions
from capstone_dagster.services import Services
from capstone_dagster.storage.video_status import (
    mark_begun,
    mark_cancelled,
    mark_failed,
    mark_settled,
    mark_superseded,
    mark_waiting,
    unfinished_runs,
)

Status = dg.DagsterRunStatus


def reconcile(instance: dg.DagsterInstance, services: Services) -> str:
    """Compare the uploads that are not finished with their runs; returns the account in a sentence.

    Raises:
        StorageError: the event store does not answer.
    """
    unfinished = dict(services.database.transact(unfinished_runs))
    if not unfinished:
        return "Every upload's status is final."
    found = instance.get_run_records(dg.RunsFilter(run_ids=sorted(set(unfinished.values()))))
    records = {record.dagster_run.run_id: record for record in found}
    written = sum(
        _reconcile_one(instance, services, upload_id, run_id, records.get(run_id))
        for upload_id, run_id in unfinished.items()
    )
    return f"{len(unfinished)} uploads are under way, {written} brought up to date."


def _reconcile_one(
    instance: dg.DagsterInstance,
    services: Services,
    upload_id: str,
    run_id: str,
    record: dg.RunRecord | None,
) -> bool:
    """Write what a run's record says of its upload; whether the row changed."""
    database = services.database
    if record is None:
        message = "Its run was deleted from Dagster's records before it was over."
        database.transact(mark_cancelled, upload_id, run_id, message)
        return True
    run = record.dagster_run
    if run.status == Status.STARTING and STATUS_TAG in run.tags:
        return database.transact(mark_waiting, upload_id, run_id, f"AWS Batch: {run.tags[STATUS_TAG]}")
    if run.status == Status.STARTED:
        # A worker that loads its code and model, or has only to publish, reports nothing for a while.
        return database.transact(mark_begun, upload_id, run_id)
    if run.status == Status.SUCCESS:
        return database.transact(mark_settled, upload_id, run_id)
    if run.status not in (Status.CANCELED, Status.FAILURE):
        return False
    if run.status == Status.FAILURE and not is_explained(run, time.time() - (record.end_time or 0.0)):
        return False  # what is written now would stay, whatever the launcher finds out in a moment
    _, cause = outcome_of(instance, record)
    if cause is None:
        database.transact(mark_cancelled, upload_id, run_id)
        return True
    if cause.failure == FailureClass.SOURCE_CHANGED:
        return database.transact(mark_superseded, upload_id, run_id)
    return _mark_failed(instance, services, upload_id, record, cause)


def _mark_failed(
    instance: dg.DagsterInstance, services: Services, upload_id: str, record: dg.RunRecord, cause: Cause
) -> bool:
    run = record.dagster_run
    instance.add_run_tags(run.run_id, {FAILURE_TAG: cause.failure.value})
    if PARTITION_NAME_TAG in run.tags:
        partitions = [run.tags[PARTITION_NAME_TAG]]
        report_failed_partitions(instance, run, partitions, cause.failure, cause.sentence)
    failed = failed_run(run, cause.failure, record.end_time or 0.0)
    return services.database.transact(
        mark_failed,
        upload_id,
        run.run_id,
        failure_class=cause.failure.value,
        message=cause.sentence,
        only_if_unfinished=True,
        tried_again=will_try_again(failed, services.settings.reexecutions_per_video),
    )
