"""`compute: local`: the same configuration, processes of this machine, and their deaths noticed."""

import os
import signal

import dagster as dg
import psutil  # type: ignore[import-untyped]
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.workspace.context import WorkspaceProcessContext

from batch_gpu import pool
from batch_gpu.local import alive
from batch_gpu.sensor import batch_runs_sensor
from tests.batch_gpu.conftest import PROJECT, Cloud
from tests.support.waiting import wait_for


@pytest.fixture
def workspace(cloud: Cloud) -> WorkspaceProcessContext:
    cloud.configure(launcher={"compute": "local"})
    return cloud.workspace()


def code_server() -> psutil.Process:
    servers = [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE
        if "grpc" in child.cmdline() and PROJECT in child.cmdline()
    ]
    # That of the test before may still be about to end.
    return max(servers, key=lambda server: server.create_time())


def start(cloud: Cloud, workspace: WorkspaceProcessContext) -> tuple[dg.DagsterRun, int]:
    """The endless run under way, and its worker's pid."""
    context = workspace.create_request_context()
    location = context.get_code_location("project")
    remote_job = location.get_repository("__repository__").get_full_job("waits")
    run = cloud.run(
        "waits",
        remote_job_origin=remote_job.get_remote_origin(),
    )
    cloud.instance.launch_run(run.run_id, context)
    said = cloud.home / "endless"
    wait_for("the worker", lambda: said.exists() and said.read_text().startswith(run.run_id))
    pid = int(said.read_text().split()[1])
    return cloud.fresh(run), pid


def test_no_job_is_submitted_and_a_living_worker_is_left_alone(
    cloud: Cloud, workspace: WorkspaceProcessContext
) -> None:
    run, _ = start(cloud, workspace)
    assert cloud.monitor() == []
    assert cloud.status(run) == "STARTED"
    assert cloud.batch.calls == {}
    assert cloud.launcher.terminate(run.run_id)
    cloud.until(run, "CANCELED")


def test_a_killed_worker_fails_its_run(cloud: Cloud, workspace: WorkspaceProcessContext) -> None:
    run, pid = start(cloud, workspace)
    os.kill(pid, signal.SIGKILL)
    cloud.until(run, "FAILURE")  # the code server itself notices
    assert cloud.launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def test_a_worker_whose_code_server_died_is_watched_by_its_process(
    cloud: Cloud, workspace: WorkspaceProcessContext
) -> None:
    run, pid = start(cloud, workspace)
    code_server().kill()
    assert cloud.monitor() == []
    assert cloud.status(run) == "STARTED", "it works on, and nothing is wrong with that"

    os.kill(pid, signal.SIGKILL)
    wait_for("its end", lambda: not alive(pid))
    assert cloud.monitor() == []

    assert cloud.status(run) == "FAILURE"
    assert f"pid {pid}" in cloud.messages(run)
    assert cloud.fresh(run).tags["dagster/will_retry"] == "true"


def test_a_run_whose_launch_was_cut_off_fails(cloud: Cloud) -> None:
    cloud.configure(launcher={"compute": "local"})
    run = cloud.run()
    assert cloud.watch().waiting == 1
    assert cloud.watch(1000).failed == 1
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "container-start"


def test_the_sensor_leaves_other_launchers_alone() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        skipped = batch_runs_sensor(dg.build_sensor_context(instance=instance))
        assert pool.set_pool_limit(instance) is None
    assert isinstance(skipped, dg.SkipReason)
    assert "otherwise" in str(skipped.skip_message)


@pytest.mark.parametrize(
    ("compute", "gpus", "limit"), [("local", 0, 1), ("local", 1, 1), ("local", 4, 4), ("batch", 4, 1000)]
)
def test_the_pool_holds_as_many_runs_as_there_are_gpus(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, compute: str, gpus: int, limit: int
) -> None:
    monkeypatch.setattr(pool, "gpu_count", lambda: gpus)
    instance = cloud.configure(launcher={"compute": compute})
    assert pool.set_pool_limit(instance) == limit
    assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == limit


def test_gpus_are_counted_by_the_driver(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    from batch_gpu.gpus import gpu_count

    program = cloud.home / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "GPU 0: NVIDIA H100"\necho "GPU 1: NVIDIA H100"\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{cloud.home}:{os.environ['PATH']}")
    assert gpu_count() == 2
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_count() == 0
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_count() == 0
