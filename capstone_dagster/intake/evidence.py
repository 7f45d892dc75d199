"""What the last runs tell the circuit breaker."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, RUN_KEY_TAG

from capstone_dagster.failures.breaker_state import Probe
from capstone_dagster.failures.duplicates import doubled_work
from capstone_dagster.failures.recent import RECENT_RUNS, EndedRun
from capstone_dagster.intake.breaker import ProbeFate
from capstone_dagster.intake.runs import JOB_NAME


def last_runs(instance: dg.DagsterInstance) -> tuple[list[EndedRun], list[str]]:
    """The last uploads' runs that ended, newest first, and the ids of runs that doubled GPU work, running
    ones included.
    """
    ended = RECENT_RUNS.read(instance)
    running = instance.get_runs(dg.RunsFilter(job_name=JOB_NAME, statuses=[dg.DagsterRunStatus.STARTED]))
    duplicates = [run.run_id for run in running if doubled_work(run)]
    return ended, [*duplicates, *(run.run_id for run in ended if run.doubled)]


def fate_of(instance: dg.DagsterInstance, probe: Probe, ended: Sequence[EndedRun]) -> ProbeFate:
    """What became of a probe."""
    tag, value = (PARENT_RUN_ID_TAG, probe.reexecutes) if probe.reexecutes else (RUN_KEY_TAG, probe.run_key)
    assert value is not None
    runs = instance.get_runs(dg.RunsFilter(tags={tag: value}))
    # A retry keeps the run key: the newest run is the one to watch.
    run = next((run for run in runs if run.status != dg.DagsterRunStatus.NOT_STARTED), None)
    if run is None:
        return "missing"
    if run.status == dg.DagsterRunStatus.CANCELED:
        return "canceled"
    return next((each for each in ended if each.run_id == run.run_id), "under way")
