"""Makes the run that continues where a failed one stopped.

Dagster's own way (`dagster._core.instance.create_reexecuted_run`) takes a workspace, which a sensor's process
has not; what it does with one is done here with the sensor's own definitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

import dagster as dg

from batch_gpu.jobs import RECLAIMED_TAG
from capstone_dagster.dagster_private import (
    BACKFILL_ID_TAG,
    BACKFILL_TAGS,
    PARENT_RUN_ID_TAG,
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    TAGS_TO_MAYBE_OMIT_ON_RETRY,
    BulkActionStatus,
    KnownExecutionState,
    create_execution_plan,
    snapshot_from_execution_plan,
)
from capstone_dagster.failures.breaker_state import PROBE_TAGS
from capstone_dagster.failures.requests import attempts, failed_before, request_run_id
from capstone_dagster.failures.run_steps import PASS_STEP
from capstone_dagster.run_tags import (
    FAILED_BEFORE_TAG,
    FAILURE_TAG,
    NO_FAILURE,
    PROBE_TAG,
    REEXECUTION_OF_TAG,
    REEXECUTION_TAG,
    REQUEST_RUN_TAG,
)

# Any constant will do; it makes ids that nobody else makes.
_NAMESPACE = UUID("6d1f6a0e-3f0f-4c3b-9a57-8f6f6f1f2a55")
# What a failed run's tags say of itself alone; of batch_gpu's, these two are wishes, all others its job's.
_OWN_TAGS = {FAILURE_TAG, PROBE_TAG}
_LAUNCHER_PREFIXES = ("batch_gpu/", ".dagster/batch_gpu.")
_LAUNCHER_WISHES = {"batch_gpu/compute", "batch_gpu/config"}


@dataclass(frozen=True, slots=True)
class Resumption:
    """What there is to do after a failed run.

    Attributes:
        steps: keys of the steps that failed or never began.
        known: what the steps before them left.
    """

    steps: Sequence[str]
    known: KnownExecutionState

    @classmethod
    def of(cls, instance: dg.DagsterInstance, failed: dg.DagsterRun) -> Resumption:
        """From the failed run's own record."""
        return cls(*KnownExecutionState.build_resume_retry_reexecution(instance, failed))


def reexecution_id(run_id: str) -> str:
    """The id of the one run that the system makes after a failed one: a second one cannot be stored."""
    return str(uuid5(_NAMESPACE, run_id))


def create_reexecution(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    failed: dg.DagsterRun,
    resumption: Resumption,
    *,
    probe: bool = False,
    anew: bool = False,
) -> dg.DagsterRun:
    """Put the run on record that continues where `failed` stopped; it is not submitted yet.

    It is a run like any that the UI re-executes: same job, configuration, lineage and origin, hence the same
    resources and launcher.

    Args:
        probe: it is to go before all that wait.
        anew: an operator ordered it: the system's tries of the request are counted from here.

    Raises:
        DagsterRunAlreadyExists: it is on record already.
    """
    job = repository.get_job(failed.job_name)
    selected = job
    if failed.asset_selection is not None or failed.op_selection is not None:
        selected = job.get_subset(
            asset_selection=failed.asset_selection,
            asset_check_selection=failed.asset_check_selection,
            op_selection=failed.op_selection,
        )
    tags = {
        **job.tags,
        **_inherited(failed.tags),
        **_of_backfill(instance, failed.tags),
        RESUME_RETRY_TAG: "true",
        PARENT_RUN_ID_TAG: failed.run_id,
        ROOT_RUN_ID_TAG: failed.root_run_id or failed.run_id,
        # A probe that fails for the common cause is not held against its video.
        REEXECUTION_TAG: str(0 if anew else attempts(failed.tags) + (0 if probe else 1)),
        REEXECUTION_OF_TAG: failed.run_id,
        FAILED_BEFORE_TAG: "" if anew else ",".join(_failures(failed, resumption)),
        REQUEST_RUN_TAG: request_run_id(failed.run_id, failed.tags),
        **(PROBE_TAGS if probe else {}),
    }
    plan = create_execution_plan(
        selected,
        run_config=failed.run_config,
        step_keys_to_execute=list(resumption.steps),
        known_state=resumption.known,
        instance_ref=instance.get_ref() if instance.is_persistent else None,
        tags=tags,
        repository_load_data=repository.repository_load_data,
    )
    # Not by create_run_for_job, which forgets a selection of checks.
    return instance.create_run(
        job_name=failed.job_name,
        run_id=reexecution_id(failed.run_id),
        run_config=failed.run_config,
        status=dg.DagsterRunStatus.NOT_STARTED,
        tags=tags,
        root_run_id=failed.root_run_id or failed.run_id,
        parent_run_id=failed.run_id,
        step_keys_to_execute=plan.step_keys_to_execute,
        execution_plan_snapshot=snapshot_from_execution_plan(plan, selected.get_job_snapshot_id()),
        job_snapshot=selected.get_job_snapshot(),
        parent_job_snapshot=selected.get_parent_job_snapshot(),
        asset_selection=failed.asset_selection,
        asset_check_selection=failed.asset_check_selection,
        resolved_op_selection=None,
        op_selection=None if failed.op_selection is None else list(failed.op_selection),
        remote_job_origin=failed.remote_job_origin,
        job_code_origin=failed.job_code_origin,
        asset_graph=selected.asset_layer.asset_graph,
    )


def _failures(failed: dg.DagsterRun, resumption: Resumption) -> tuple[str, ...]:
    """The classes by which the request's tries failed in their pass, without lost machines."""
    reclaimed = failed.tags.get(RECLAIMED_TAG) == "true"
    failure = failed.tags.get(FAILURE_TAG, NO_FAILURE)
    counts = failure != NO_FAILURE and PASS_STEP in resumption.steps and not reclaimed
    return (*failed_before(failed.tags), *([failure] if counts else []))


def _of_backfill(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> dict[str, str]:
    """As Dagster's own retries have it: a run belongs to a backfill as long as that is not over.

    Its daemon then waits for the run, counts what it makes, and ends it if the backfill is ended.
    """
    backfill = instance.get_backfill(tags[BACKFILL_ID_TAG]) if BACKFILL_ID_TAG in tags else None
    if backfill is None or backfill.status != BulkActionStatus.REQUESTED:
        return {}
    return {name: tags[name] for name in BACKFILL_TAGS if name in tags}


def _inherited(tags: Mapping[str, str]) -> dict[str, str]:
    left_out = TAGS_TO_MAYBE_OMIT_ON_RETRY | _OWN_TAGS
    # A probe's priority was the probe's.
    left_out |= set(PROBE_TAGS) if PROBE_TAG in tags else set()
    return {
        name: value
        for name, value in tags.items()
        if name not in left_out and (name in _LAUNCHER_WISHES or not name.startswith(_LAUNCHER_PREFIXES))
    }
