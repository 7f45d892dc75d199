"""The daemon is killed at every point of submitting a run: it is executed once, whatever happens."""

import os
import signal
import subprocess
import sys

import dagster as dg
import pytest

from batch_gpu.testing import Machines
from tests.batch_gpu.conftest import ROOT, Cloud
from tests.batch_gpu.daemon import POINTS, queue_pass
from tests.support.waiting import scaled, wait_for

LATER = 1000.0


def kill_daemon(point: str) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.batch_gpu.daemon", point],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(120),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.parametrize("point", POINTS)
def test_a_run_is_executed_once_though_the_daemon_was_killed(cloud: Cloud, point: str) -> None:
    # A worker that only says that it ran: Dagster's own would take its time, and this is not about it.
    worker = {"entry_point": ["sh", "-c", "echo ran >> $BATCH_GPU_TEST/ran"]}
    cloud.configure(launcher=worker)
    run = cloud.queued()
    kill_daemon(point)

    cloud.configure(launcher=worker)  # the daemon starts again
    queue_pass(cloud.instance)
    cloud.watch(LATER)

    job = cloud.until_job("SUCCEEDED")
    assert (cloud.home / "ran").read_text().split() == ["ran"]
    assert len(cloud.batch.jobs()) == 1
    assert cloud.fresh(run).tags["batch_gpu/job_id"] == job["jobId"]
    assert cloud.batch.calls["ListJobs"] <= 1


def test_a_job_that_was_not_written_down_is_found_when_its_run_has_begun(cloud: Cloud) -> None:
    run = cloud.queued("waits")
    kill_daemon("after the request")
    wait_for("the worker", (cloud.home / "endless").exists)
    cloud.configure()
    assert "batch_gpu/job_id" not in cloud.fresh(run).tags

    assert cloud.monitor() == []
    assert cloud.monitor() == []

    assert cloud.status(run) == "STARTED"
    assert cloud.fresh(run).tags["batch_gpu/job_id"] == cloud.job()["jobId"]
    assert cloud.batch.calls["ListJobs"] == 1


def test_a_run_is_not_given_up_while_its_job_is_not_listed_yet(cloud: Cloud) -> None:
    run = cloud.queued("waits")
    kill_daemon("after the request")
    wait_for("the worker", (cloud.home / "endless").exists)
    cloud.batch.listing_lag_s = 3600
    cloud.configure()
    [error] = cloud.monitor()
    assert "does not list" in error.message
    assert cloud.status(run) == "STARTED"
    cloud.batch.listing_lag_s = 0
    assert cloud.monitor() == []


def test_a_run_whose_job_was_not_written_down_can_be_canceled(cloud: Cloud) -> None:
    cloud.batch.set_machines("gpu", Machines(count=0))
    run = cloud.queued()
    kill_daemon("after the request")
    cloud.configure()
    assert cloud.launcher.terminate(run.run_id)
    assert cloud.fresh(run).status == dg.DagsterRunStatus.CANCELED
    assert cloud.job()["status"] == "FAILED"
