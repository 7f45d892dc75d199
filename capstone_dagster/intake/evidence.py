"""What the last runs tell the circuit breaker, read from Dagster's storage."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, RUN_KEY_TAG

from capstone_dagster.failures.breaker_state import Probe
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.duplicates import doubled_work
from capstone_dagster.failures.failed_runs import (
    class_of,
    is_explained,
    retry_is_decided,
    starts_again,
)
from capstone_dagster.failures.run_steps import has_pass
from capstone_dagster.intake.breaker import EndedRun, ProbeFate
from capstone_dagster.intake.runs import JOB_NAME
from capstone_dagster.run_tags import FAILURE_TAG, NO_FAILURE, UPLOAD_TAG

# Runs that ended longer ago say nothing of now.
_LOOKED_BACK_S = 24 * 3600.0
# Some multiple of any sensible CAPSTONE_PAUSE_AFTER_FAILURES; failures of videos' own may lie between.
_RUNS_LOOKED_AT = 100
_SEEN = [
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
]


def last_runs(instance: dg.DagsterInstance) -> tuple[list[EndedRun], list[str]]:
    """The last runs that are over, newest first, and the ids of those that doubled GPU work, at work or over.

    A run that Dagster starts again by itself is not over, nor one of which that or the class is not known
    yet; of one that an operator ended nothing is to be learnt.
    """
    # The last to be created, which Dagster's storage finds by its key however long its past is; in order of
    # their last change it would sort all of a day's.
    records = instance.get_run_records(
        dg.RunsFilter(job_name=JOB_NAME, statuses=_SEEN), limit=_RUNS_LOOKED_AT
    )
    since = time.time() - _LOOKED_BACK_S
    lately = [record for record in records if (record.end_time or math.inf) > since]
    ended = [run for record in lately if (run := _ended(instance, record)) is not None]
    duplicates = [record.dagster_run.run_id for record in records if doubled_work(record.dagster_run)]
    return sorted(ended, key=lambda run: run.ended_at, reverse=True), duplicates


def fate_of(instance: dg.DagsterInstance, probe: Probe) -> ProbeFate:
    """What became of a probe; if Dagster retried it after its worker was lost, of the last retry."""
    if probe.reexecutes is not None:
        records = _runs_with(instance, PARENT_RUN_ID_TAG, probe.reexecutes)
    else:
        assert probe.run_key is not None
        records = _runs_with(instance, RUN_KEY_TAG, probe.run_key)
    on_record = [record for record in records if record.dagster_run.status != dg.DagsterRunStatus.NOT_STARTED]
    if not on_record:
        return "missing"
    record = on_record[0]
    while starts_again(record.dagster_run):
        retries = _runs_with(instance, PARENT_RUN_ID_TAG, record.dagster_run.run_id)
        if not retries:
            return "under way"
        record = retries[0]
    if record.dagster_run.status == dg.DagsterRunStatus.CANCELED:
        return "canceled"
    return _ended(instance, record) or "under way"


def _runs_with(instance: dg.DagsterInstance, tag: str, value: str) -> Sequence[dg.RunRecord]:
    """The runs with a tag, newest first."""
    return instance.get_run_records(dg.RunsFilter(tags={tag: value}))


def _ended(instance: dg.DagsterInstance, record: dg.RunRecord) -> EndedRun | None:
    run = record.dagster_run
    ended_at = record.end_time or record.update_timestamp.timestamp()
    failure: FailureClass | None = None
    if run.status == dg.DagsterRunStatus.FAILURE:
        age_s = time.time() - ended_at
        if starts_again(run) or not retry_is_decided(run, age_s) or not is_explained(run, age_s):
            return None
        failure = class_of(instance, run)
        if run.tags.get(FAILURE_TAG, NO_FAILURE) == NO_FAILURE:
            # The next tick, some seconds from now, need not read its events again.
            instance.add_run_tags(run.run_id, {FAILURE_TAG: failure.value})
    elif run.status != dg.DagsterRunStatus.SUCCESS:
        return None
    return EndedRun(
        run_id=run.run_id,
        upload=run.tags.get(UPLOAD_TAG) or run.run_id,
        failure=failure,
        started_at=record.start_time or ended_at,
        ended_at=ended_at,
        whole=has_pass(run),
        own_model=_names_a_model(run),
    )


def _names_a_model(run: dg.DagsterRun) -> bool:
    """Whether the request behind a run wanted another model than the configured one."""
    section: object = run.run_config
    for name in ("ops", "video_analysis", "ops", "analyze_video", "config", "model"):
        section = section.get(name) if isinstance(section, dict) else None
    return section is not None
