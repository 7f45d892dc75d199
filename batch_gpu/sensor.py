"""A sensor that watches jobs until their runs begin, because Dagster's monitoring does not.

Dagster asks a launcher only about runs that have begun, and times the others. Meanwhile a job may wait for a
machine, be refused by every machine, fail to start its container, or never have been submitted because the
daemon was killed. A worker that receives a stop signal, because its time is up or its machine is reclaimed,
reports "unexpected termination" without the reason; this sensor looks the reason up. If the UI cancels a run
by force before it has begun, or Dagster stops waiting for it, the launcher is not notified and the job stays
behind; this sensor terminates it.

Add `batch_runs_sensor` to the code location's `Definitions`; a code location that reads ended runs by itself
adds `build_batch_runs_sensor(look_back=False)` and calls `settle_ended` with each of them. `on_changes` is a
hook for the jobs' history.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import dagster as dg

from batch_gpu.dagster_private import RUN_FAILURE_REASON_TAG, RunFailureReason, WorkerStatus
from batch_gpu.endings import ENDED, Ending, Job, blocked, ending_of, interrupted_by, waited_too_long
from batch_gpu.errors import BatchGpuError
from batch_gpu.history import OnChanges, report_changes
from batch_gpu.jobs import FAILURE_TAG, NONE, STATUS_SINCE_TAG, STATUS_TAG, TERMINATED, has_joined, own_job_id
from batch_gpu.launcher import BatchGpuRunLauncher

# A launch may be under way in the daemon; only one that is older than all patience of a launch, and older
# than ListJobs' lag, was cut off.
CUT_OFF_MARGIN_S = 30.0
# A tick may take 60 s. The next one continues where it stops: handled runs need no more work.
BUDGET_S = 35.0
# Of telling what jobs wait for, which is worth less than the rest.
TOLD_AT_ONCE = 50
# For how long after a run's end its job is looked at: stopping takes a container half a minute.
LOOKED_BACK_S = 600.0


Settled = Literal["nothing", "explained", "ended", "waiting"]


@dataclass(frozen=True, slots=True)
class Watched:
    """What a look at the runs that have not begun did."""

    waiting: int = 0
    submitted: int = 0
    failed: int = 0
    explained: int = 0
    ended: int = 0
    unanswered: int = 0

    def __str__(self) -> str:
        message = (
            f"{self.waiting} runs wait for their worker, {self.failed} failed, {self.submitted} submitted"
        )
        message += f", {self.explained} interruptions explained, {self.ended} jobs left behind ended"
        return f"{message}, {self.unanswered} to be asked again." if self.unanswered else f"{message}."


def watch_runs(
    instance: dg.DagsterInstance,
    launcher: BatchGpuRunLauncher,
    *,
    now: Callable[[], float] = time.time,
    say: Callable[[str], None] = lambda _: None,
    look_back: bool = True,
) -> Watched:
    """Look once at each run that was launched and has not begun.

    Args:
        say: takes a sentence for each run that could not be looked at.
        look_back: look for runs that ended lately, too (:func:`settle_ended`).
    """
    counts = {"waiting": 0, "submitted": 0, "failed": 0, "unanswered": 0}
    records = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING]))
    over = time.monotonic() + BUDGET_S
    telling = _Telling(instance)
    for record in records:
        if time.monotonic() > over:
            say(f"{len(records) - sum(counts.values())} runs are left to the next tick.")
            break
        run = record.dagster_run
        age_s = now() - record.update_timestamp.timestamp()
        cut_off = age_s > launcher.config.submit_deadline_seconds + CUT_OFF_MARGIN_S
        try:
            if launcher.config.compute == "local":
                outcome = _watch_process(launcher, run) if cut_off else "waiting"
            elif (job_id := own_job_id(run.run_id, run.tags)) is not None:
                outcome = _watch_job(telling, launcher, run, job_id, int(now() * 1000), cut_off)
            elif cut_off:
                outcome = _submit(launcher.submit, run)
            else:
                outcome = "waiting"
        except BatchGpuError as error:
            say(f"Run {run.run_id}: {error}")
            outcome = "unanswered"
        counts[outcome] += 1
    explained = ended = 0
    if look_back and launcher.config.compute == "batch":
        for run in _ended_lately(instance, datetime.fromtimestamp(now() - LOOKED_BACK_S, UTC)):
            try:
                settled = settle_ended(instance, run)
                explained, ended = explained + (settled == "explained"), ended + (settled == "ended")
            except BatchGpuError as error:
                say(f"Run {run.run_id}: {error}")
                counts["unanswered"] += 1
    return Watched(**counts, explained=explained, ended=ended)


def build_batch_runs_sensor(
    *, look_back: bool = True, on_changes: OnChanges | None = None
) -> dg.SensorDefinition:
    """The sensor; does nothing with another run launcher.

    Args:
        look_back: look for runs that ended lately, too. A code location that reads ended runs by itself
            leaves this out, and calls :func:`settle_ended` with each.
        on_changes: called with the jobs that started or ended since the last tick; may fail.
    """

    @dg.sensor(
        name="batch_gpu_runs",
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Watches runs that were launched and have not begun: says what their jobs wait for, "
        "fails those that can never begin, submits those whose launch was cut off by a crash.",
    )
    def batch_gpu_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        launcher = context.instance.run_launcher
        if not isinstance(launcher, BatchGpuRunLauncher):
            return dg.SkipReason("The instance launches its runs otherwise.")
        if launcher.config.compute == "local":
            launcher.local.warm_up()
        watched = watch_runs(context.instance, launcher, say=context.log.warning, look_back=look_back)
        if on_changes is not None and launcher.config.compute == "batch":
            report_changes(context, launcher, on_changes)
        return dg.SkipReason(str(watched))

    return batch_gpu_runs


batch_runs_sensor = build_batch_runs_sensor()


def _submit(submit: Callable[[dg.DagsterRun], str], run: dg.DagsterRun) -> str:
    try:
        submit(run)
    except BatchGpuError:
        return "failed"  # the run's events say why
    return "submitted"


def _watch_process(launcher: BatchGpuRunLauncher, run: dg.DagsterRun) -> str:
    health = launcher.check_run_worker_health(run)
    if health.status == WorkerStatus.RUNNING:
        return "waiting"
    launcher.fail(run, Ending("container-start", True, health.msg or "The run's process did not start."))
    return "failed"


def _watch_job(
    telling: "_Telling",
    launcher: BatchGpuRunLauncher,
    run: dg.DagsterRun,
    job_id: str,
    now_ms: int,
    settled: bool,
) -> str:
    instance = telling.instance
    job = launcher.job(run, job_id)
    if job is None and not settled:
        return "waiting"  # AWS's answers may lag behind the submission
    if has_joined(run.run_id, run.tags) and (job is None or job["status"] != "RUNNING"):
        return _leave_job(instance, launcher, run, job)
    if job is None:
        gone = f"AWS Batch no longer knows job {job_id}, and the run has not begun."
        return _fail(instance, launcher, run, Ending("container-start", True, gone))
    launcher.note_log_stream(run, job)
    if job["status"] in ENDED:
        ending: Ending | None = ending_of(job)
        assert ending is not None
        explained = Ending(ending.failure, ending.transient, ending.message + launcher.last_lines(job))
        return _fail(instance, launcher, run, explained)
    limit_s = launcher.job_of(run)[1].max_wait_seconds
    same = run.tags.get(STATUS_TAG) == _status(job)
    for_s = now_ms / 1000 - float(run.tags.get(STATUS_SINCE_TAG, now_ms / 1000)) if same else 0.0
    ending = blocked(job, for_s) or (waited_too_long(job, limit_s, now_ms) if limit_s else None)
    if ending is not None:
        launcher.api.terminate(job_id, ending.message)
        return _fail(instance, launcher, run, ending)
    telling.tell(run, job, now_ms)
    return "waiting"


def _leave_job(
    instance: dg.DagsterInstance, launcher: BatchGpuRunLauncher, run: dg.DagsterRun, job: Job | None
) -> str:
    """A run has joined a job that has ended, or is being started again on another machine."""
    if job is not None and job["status"] not in ENDED:
        launcher.api.terminate(str(job["jobId"]), "Its machine was taken away between two runs.")
        return "waiting"
    fresh = instance.get_run_by_id(run.run_id)
    if fresh is None or fresh.status != dg.DagsterRunStatus.STARTING:
        return "waiting"  # the job had begun it
    return _submit(launcher.submit_own, fresh)


def _fail(
    instance: dg.DagsterInstance, launcher: BatchGpuRunLauncher, run: dg.DagsterRun, ending: Ending
) -> str:
    fresh = instance.get_run_by_id(run.run_id)
    if fresh is None or fresh.status != dg.DagsterRunStatus.STARTING:
        return "waiting"  # it has begun or ended meanwhile, which is somebody else's to judge
    launcher.fail(run, ending)
    return "failed"


def settle_ended(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Settled:
    """After a run's end: report why its worker had to stop, and terminate a job that it left behind.

    Code that reads ended runs anyway calls this for each of them; the sensor looks for them itself
    (:func:`batch_runs_sensor`).

    Returns:
        What was done; `waiting`: ask again in some seconds.

    Raises:
        BatchGpuError: AWS did not answer; ask again.
    """
    launcher = instance.run_launcher
    if not isinstance(launcher, BatchGpuRunLauncher) or launcher.config.compute != "batch":
        return "nothing"
    job_id = own_job_id(run.run_id, run.tags)
    if job_id is None:
        return "nothing"
    reason = run.tags.get(RUN_FAILURE_REASON_TAG)
    if reason == RunFailureReason.UNEXPECTED_TERMINATION.value and run.tags.get(FAILURE_TAG, NONE) == NONE:
        return "explained" if _explain(instance, launcher, run, job_id) else "waiting"
    left = run.status == dg.DagsterRunStatus.CANCELED or reason == RunFailureReason.START_TIMEOUT.value
    if left and run.tags.get(STATUS_TAG) != TERMINATED:
        launcher.end_job(run, job_id, f"Run {run.run_id} ended in Dagster before its worker began.")
        return "ended"
    return "nothing"


def _ended_lately(instance: dg.DagsterInstance, since: datetime) -> list[dg.DagsterRun]:
    ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    runs = instance.get_runs(dg.RunsFilter(statuses=ended, updated_after=since))
    return [run for run in runs if own_job_id(run.run_id, run.tags)]


def _explain(
    instance: dg.DagsterInstance, launcher: BatchGpuRunLauncher, run: dg.DagsterRun, job_id: str
) -> bool:
    job = launcher.job(run, job_id)
    ending = interrupted_by(job) if job is not None else None
    if ending is None:
        return False
    instance.add_run_tags(run.run_id, ending.tags())
    message = f"Why the worker had to stop: {ending.failure}: {ending.message}"
    instance.report_engine_event(message, run, cls=BatchGpuRunLauncher)
    return True


class _Telling:
    """Says what a run's job waits for: in a tag, and as an event for each change."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self._left = TOLD_AT_ONCE

    def tell(self, run: dg.DagsterRun, job: Job, now_ms: int) -> None:
        status = _status(job)
        if run.tags.get(STATUS_TAG) == status or self._left == 0:
            return
        self._left -= 1
        since = str(now_ms // 1000)
        self.instance.add_run_tags(run.run_id, {STATUS_TAG: status, STATUS_SINCE_TAG: since})
        message = {
            "RUNNABLE": "The job waits for a machine",
            "STARTING": "The job has a machine, its container starts",
            "RUNNING": "The container runs, its worker has not begun the run yet",
        }.get(str(job["status"]), "The job was accepted")
        self.instance.report_engine_event(f"{message} ({status}).", run, cls=BatchGpuRunLauncher)


def _status(job: Job) -> str:
    reason = str(job.get("statusReason") or "")
    return f"{job['status']}: {reason}" if reason else str(job["status"])
