"""Runs that wait are executed by one job, one after the other; each fails, and is cancelled, alone."""

import os
import signal

import dagster as dg
import pytest

from tests.batch_gpu.conftest import Cloud
from tests.batch_gpu.daemon import JOINING, queue_pass
from tests.batch_gpu.test_crashes import LATER, kill_daemon
from tests.support.waiting import wait_for

SHARED = {name: {"job_queue": name, "job_definition": "worker", "runs_per_job": 3} for name in ("gpu", "cpu")}


@pytest.fixture
def one_at_a_time(cloud: Cloud) -> Cloud:
    """One run at a time leaves Dagster's queue, as the pool's limit has it with one GPU."""
    configure(cloud)
    return cloud


def configure(cloud: Cloud, *, idle_seconds: int = 60) -> None:
    """Another daemon, so to speak; its workers wait for as long as any machine takes to launch a run."""
    launcher = {**SHARED, "idle_seconds": idle_seconds}
    cloud.configure(launcher=launcher, concurrency={"runs": {"max_concurrent_runs": 1}})


def executed(cloud: Cloud) -> list[str]:
    said = cloud.home / "looked"
    return said.read_text().split() if said.exists() else []


def drain(cloud: Cloud, runs: list[dg.DagsterRun]) -> None:
    def over() -> bool:
        queue_pass(cloud.instance)
        cloud.watch()
        return all(cloud.fresh(run).is_finished for run in runs)

    wait_for("all runs' ends", over, deadline_s=90)


def idle(cloud: Cloud, run: dg.DagsterRun) -> bool:
    return cloud.fresh(run).tags.get(".dagster/batch_gpu.idle") == "true"


def test_runs_that_wait_share_a_job_and_each_keeps_its_own_record(one_at_a_time: Cloud) -> None:
    cloud = one_at_a_time
    runs = [cloud.queued() for _ in range(4)]
    drain(cloud, runs)
    assert executed(cloud) == [run.run_id for run in runs]
    assert {cloud.status(run) for run in runs} == {"SUCCESS"}
    first, second = (job["jobId"] for job in cloud.batch.jobs())
    jobs = [cloud.fresh(run).tags["batch_gpu/job_id"] for run in runs]
    assert jobs == [first, first, first, second], "three runs a job"
    assert "goes on with this one" in cloud.messages(runs[1])


def test_a_run_that_fails_ends_its_worker_and_costs_the_next_one_a_start(one_at_a_time: Cloud) -> None:
    cloud = one_at_a_time
    (cloud.home / "fail-thinking").touch()
    bad, good = cloud.queued(), cloud.queued()
    queue_pass(cloud.instance)
    cloud.until(bad, "FAILURE")
    (cloud.home / "fail-thinking").unlink()
    drain(cloud, [good])
    assert [cloud.status(run) for run in (bad, good)] == ["FAILURE", "SUCCESS"]
    assert len(cloud.batch.jobs()) == 2


def test_ending_a_run_that_has_joined_ends_that_run_alone(one_at_a_time: Cloud) -> None:
    cloud = one_at_a_time
    done, endless = cloud.queued("waits"), cloud.queued("waits")
    (cloud.home / "enough").touch()
    queue_pass(cloud.instance)
    cloud.until(done, "SUCCESS")
    (cloud.home / "enough").unlink()
    queue_pass(cloud.instance)
    cloud.until(endless, "STARTED")
    assert cloud.monitor() == []
    assert cloud.launcher.terminate(endless.run_id)
    cloud.until(endless, "CANCELED")
    assert cloud.status(done) == "SUCCESS"
    assert cloud.until_job("FAILED") == cloud.job()


def test_a_run_whose_job_is_lost_before_it_begins_gets_one_of_its_own(one_at_a_time: Cloud) -> None:
    cloud = one_at_a_time
    runs = [cloud.queued(), cloud.queued()]
    queue_pass(cloud.instance)
    wait_for("the worker's rest", lambda: idle(cloud, runs[0]))
    [job] = cloud.batch.jobs()
    pid = cloud.batch.pid(job["jobId"])
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it will not see that it is given a run
    queue_pass(cloud.instance)
    assert cloud.fresh(runs[1]).tags["batch_gpu/job_id"] == job["jobId"]
    os.kill(pid, signal.SIGKILL)
    drain(cloud, runs)
    assert executed(cloud) == [run.run_id for run in runs]
    assert cloud.fresh(runs[1]).tags["batch_gpu/job_id"] == cloud.batch.jobs()[1]["jobId"]


def test_a_worker_is_not_given_what_differs_and_ends_when_nothing_else_waits(one_at_a_time: Cloud) -> None:
    cloud = one_at_a_time
    configure(cloud, idle_seconds=1)
    runs = [cloud.queued(), cloud.queued("waits")]  # another job of Dagster's, for another queue
    (cloud.home / "enough").touch()
    drain(cloud, runs)
    assert len({cloud.fresh(run).tags["batch_gpu/job_id"] for run in runs}) == 2
    cloud.until_job("SUCCEEDED")
    assert not idle(cloud, runs[0])


@pytest.mark.parametrize("point", JOINING)
def test_a_run_is_executed_once_though_the_daemon_was_killed(one_at_a_time: Cloud, point: str) -> None:
    cloud = one_at_a_time
    runs = [cloud.queued(), cloud.queued()]
    queue_pass(cloud.instance)
    wait_for("the worker's rest", lambda: idle(cloud, runs[0]))
    kill_daemon(point)
    configure(cloud)  # the daemon starts again
    queue_pass(cloud.instance)
    cloud.watch(LATER)
    drain(cloud, runs)
    assert executed(cloud) == [run.run_id for run in runs]
    assert len(cloud.batch.jobs()) == (1 if point == "after it is joined" else 2)
