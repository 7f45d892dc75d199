"""What becomes of jobs: each one's start and end, reported once to the owner of that history.

Jobs are found by runs that changed lately, and followed until they have ended, which may be after their runs.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import dagster as dg

from batch_gpu.endings import ENDED, Job
from batch_gpu.jobs import own_job_id
from batch_gpu.launcher import BatchGpuRunLauncher

# A run is looked at again for this long after its last change: a tick may be late, a launch take its time.
OVERLAP_S = 120.0


@dataclass(frozen=True, slots=True)
class JobChange:
    """A job that started or ended.

    Attributes:
        what: `started`, or how it ended.
        job: as DescribeJobs answers.
    """

    what: Literal["started", "succeeded", "failed"]
    job: Job

    @property
    def run_id(self) -> str | None:
        """The run that the job was submitted for."""
        tags: Mapping[str, str] = self.job.get("tags") or {}
        return tags.get("dagster/run_id")


OnChanges = Callable[[dg.DagsterInstance, Sequence[JobChange]], None]


def new_changes(
    instance: dg.DagsterInstance, launcher: BatchGpuRunLauncher, cursor: str | None, now: float
) -> tuple[list[JobChange], str]:
    """What has changed since the cursor was written, and the next cursor.

    Raises:
        BatchGpuError: AWS does not answer; the same cursor finds the same changes later.
    """
    kept: dict[str, Any] = json.loads(cursor) if cursor else {"at": now, "jobs": {}}
    known: Mapping[str, str] = kept["jobs"]
    since = datetime.fromtimestamp(kept["at"] - OVERLAP_S, UTC)
    runs = instance.get_runs(dg.RunsFilter(updated_after=since))
    recent = {own_job_id(run.run_id, run.tags) for run in runs} - {None}
    followed = {job_id for job_id, status in known.items() if status not in ENDED}
    jobs = launcher.api.describe({*map(str, recent), *followed})
    changes = [change for job_id, job in jobs.items() for change in changes_between(known.get(job_id), job)]
    statuses = {job_id: str(job["status"]) for job_id, job in jobs.items()}
    return changes, json.dumps({"at": now, "jobs": statuses}, separators=(",", ":"))


def changes_between(known: str | None, job: Job) -> list[JobChange]:
    """What a job did between the status it was known by and its present one."""
    status = str(job["status"])
    if status == known or known in ENDED:
        return []
    started = job.get("startedAt") and known != "RUNNING"
    changes = [JobChange("started", job)] if started else []
    if status in ENDED:
        changes.append(JobChange("succeeded" if status == "SUCCEEDED" else "failed", job))
    return changes


def report_changes(
    context: dg.SensorEvaluationContext, launcher: BatchGpuRunLauncher, on_changes: OnChanges
) -> None:
    """Hand new changes on. What fails here fails nothing else: a history is worth no run."""
    try:
        changes, cursor = new_changes(context.instance, launcher, context.cursor, time.time())
        context.update_cursor(cursor)
        if changes:
            on_changes(context.instance, changes)
    except Exception as error:
        context.log.warning(f"The jobs' history could not be written: {type(error).__name__}: {error}")
