"""`python -m batch_gpu.worker`: the process of a job that may execute several runs, one after the other.

The first run is the job's own. After a run that has succeeded the worker waits for some seconds for another
one: the launcher gives it a run that it would otherwise submit a job for. The container's start, the imports
and the loaded model are then paid once. Each run keeps its own record, queue position, log lines and end; a
run never waits for others to come.

Every other end of a run ends the worker: what has failed may have left the process or its GPU in a bad state,
and what was to stop a run must not stop the next one.
"""

import base64
import os
import signal
import sys
import time
import zlib
from typing import NoReturn

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

from batch_gpu.dagster_private import (
    ExecuteRunArgs,
    capture_interrupts,
    check_captured_interrupt,
    deserialize_value,
    setup_interrupt_handlers,
)
from batch_gpu.jobs import (
    DAGSTER_JOB_VARIABLE,
    IDLE_TAG,
    JOB_ID_TAG,
    JOB_ID_VARIABLE,
    NONE,
    RUN_ID_VARIABLE,
    own_job_id,
)
from batch_gpu.run_body import execute_run

# A job's time limit counts for all its runs: the last of them has this much less than the first.
GOES_ON_FOR_S = 900.0
_ASK_AGAIN_S = 0.5
_STOPPED = 128 + signal.SIGTERM


def work(instance: DagsterInstance, run_id: str, *, job_id: str, most: int, idle_s: float) -> int:
    """Execute a run and those that the launcher hands over afterwards; an exit status.

    Args:
        job_id: of the job whose process this is.
        most: how many runs it executes at most.
        idle_s: how long it waits for another run.
    """
    began = time.monotonic()
    for number in range(1, most + 1):
        status, stopped = _execute(instance, run_id)
        run = instance.get_run_by_id(run_id)
        if stopped:
            return _STOPPED
        if status or run is None or run.status != DagsterRunStatus.SUCCESS:
            return status
        if number == most or time.monotonic() - began > GOES_ON_FOR_S:
            break
        following = _wait_for_another(instance, run, job_id, idle_s)
        if following is None:
            break
        run_id = following.run_id
        os.environ |= {RUN_ID_VARIABLE: run_id, DAGSTER_JOB_VARIABLE: following.job_name}
    return 0


def _execute(instance: DagsterInstance, run_id: str) -> tuple[int, bool]:
    """The exit status of `dagster api execute_run`, and whether the process is to stop."""
    with capture_interrupts():
        status = execute_run(instance, run_id, set_exit_code_on_failure=True)
        return status, check_captured_interrupt()


def _wait_for_another(
    instance: DagsterInstance, done: DagsterRun, job_id: str, idle_s: float
) -> DagsterRun | None:
    instance.add_run_tags(done.run_id, {IDLE_TAG: "true"})
    give_up = time.monotonic() + idle_s
    while time.monotonic() < give_up:
        if (given := _given(instance, job_id)) is not None:
            return given
        time.sleep(_ASK_AGAIN_S)
    instance.add_run_tags(done.run_id, {IDLE_TAG: NONE})
    # It may have been given meanwhile. One that is given later gets a job of its own (`sensor`).
    return _given(instance, job_id)


def _given(instance: DagsterInstance, job_id: str) -> DagsterRun | None:
    """The run that waits for this job, the oldest if there are several."""
    starting = RunsFilter(statuses=[DagsterRunStatus.STARTING], tags={JOB_ID_TAG: job_id})
    runs = instance.get_runs(starting, ascending=True)
    return next((run for run in runs if own_job_id(run.run_id, run.tags) == job_id), None)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(_STOPPED)


def main() -> None:
    # As the first process of a container it would otherwise ignore the signal.
    signal.signal(signal.SIGINT, _stop)
    setup_interrupt_handlers()
    most, idle_s, packed = sys.argv[1:]
    args = deserialize_value(zlib.decompress(base64.b64decode(packed)).decode(), ExecuteRunArgs)
    assert args.instance_ref is not None
    with DagsterInstance.from_ref(args.instance_ref) as instance:
        job_id = os.environ[JOB_ID_VARIABLE]
        sys.exit(work(instance, args.run_id, job_id=job_id, most=int(most), idle_s=float(idle_s)))


if __name__ == "__main__":
    main()
