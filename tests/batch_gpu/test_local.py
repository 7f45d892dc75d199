"""`compute: local`: the same configuration, processes of this machine, and their deaths noticed."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil  # type: ignore[import-untyped]
import pytest
from dagster._core.launcher import LaunchRunContext, WorkerStatus

from batch_gpu import pool
from batch_gpu.fork_worker import start_time
from batch_gpu.jobs import CANCELLED_TAG
from batch_gpu.local import PROCESS_TAG, kill, live_process
from batch_gpu.sensor import batch_runs_sensor
from capstone_dagster.failures.classes import classify_recorded
from tests.batch_gpu.conftest import PROJECT, ROOT, Cloud
from tests.support.waiting import wait_for


@pytest.fixture
def local(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """Runs as processes of this machine, forked by a server of this test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cloud.configure(launcher={"compute": "local", "preload": [PROJECT]})
    yield cloud
    for server in servers():
        server.kill()


def servers() -> list[psutil.Process]:
    """The fork servers that this process has started and that still run."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE
        if "batch_gpu.fork_server" in child.cmdline()
    ]


def start(cloud: Cloud) -> tuple[dg.DagsterRun, int]:
    """The endless run under way, and its worker's pid."""
    said = cloud.home / "endless"
    said.unlink(missing_ok=True)
    run = cloud.run("waits")
    cloud.instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    wait_for("the worker", lambda: said.exists() and said.read_text().startswith(run.run_id))
    return cloud.fresh(run), int(said.read_text().split()[1])


def test_a_run_is_a_forked_process_that_can_be_canceled(local: Cloud) -> None:
    run, pid = start(local)
    assert live_process(run) == pid
    assert psutil.Process(pid).ppid() == servers()[0].pid
    assert local.monitor() == []
    assert local.status(run) == "STARTED"
    assert local.batch.calls == {}
    assert local.launcher.terminate(run.run_id)
    local.until(run, "CANCELED")
    wait_for("its process to end", lambda: live_process(run) is None)


def test_a_long_temporary_folder_does_not_keep_a_run_from_starting(
    local: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", None)
    run, pid = start(local)
    assert live_process(run) == pid
    assert local.launcher.terminate(run.run_id)
    local.until(run, "CANCELED")


def test_a_frozen_worker_ignores_its_signal_and_is_killed(local: Cloud) -> None:
    run, pid = start(local)
    os.kill(pid, signal.SIGSTOP)
    for _ in range(2):  # asking again changes nothing
        assert local.launcher.terminate(run.run_id)
    assert live_process(local.fresh(run)) == pid
    assert kill(local.fresh(run))
    local.until(run, "CANCELED")
    wait_for("its process to end", lambda: live_process(run) is None)
    assert not kill(run)


def test_a_run_that_was_cancelled_since_the_queue_read_it_is_not_launched(local: Cloud) -> None:
    run = local.run("waits")
    local.instance.add_run_tags(run.run_id, {CANCELLED_TAG: run.run_id})
    local.instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    assert local.status(run) == "CANCELED"
    assert servers() == []


def short(cloud: Cloud) -> tuple[dg.DagsterRun, str]:
    """A run that has ended well, and its process: pid and start time."""
    run = cloud.run("look_think_tell")
    cloud.instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    cloud.until(run, "SUCCESS")
    return run, cloud.fresh(run).tags[PROCESS_TAG]


def idle() -> list[psutil.Process]:
    """Workers that wait for a run."""
    return [worker for worker in servers()[0].children() if worker.name() == "idle"]


def test_a_worker_executes_runs_one_after_the_other(local: Cloud) -> None:
    first, process = short(local)
    wait_for("its worker to be idle", idle)
    assert live_process(local.fresh(first)) is None
    second, same = short(local)
    assert same == process

    wait_for("its worker to be idle", idle)
    run, pid = start(local)
    assert pid == int(process.split()[0])
    assert live_process(run) == pid
    assert live_process(local.fresh(second)) is None, "its process executes another run"
    another, other = short(local)
    assert int(other.split()[0]) != pid, "a busy worker takes no second run"

    assert not local.launcher.terminate(another.run_id)
    assert local.launcher.terminate(run.run_id)
    local.until(run, "CANCELED")


def test_a_signal_that_comes_too_late_does_not_reach_the_next_run(local: Cloud) -> None:
    short(local)
    [worker] = wait_for("its worker to be idle", idle)
    worker.send_signal(signal.SIGTERM)
    run, pid = start(local)
    assert pid == worker.pid
    assert local.launcher.terminate(run.run_id)
    local.until(run, "CANCELED")


def test_a_worker_that_is_killed_while_idle_is_replaced(local: Cloud) -> None:
    first, _ = short(local)
    [worker] = wait_for("its worker to be idle", idle)
    worker.kill()
    second, process = short(local)
    assert int(process.split()[0]) != worker.pid
    assert local.status(first) == local.status(second) == "SUCCESS"


def test_idle_workers_end_with_their_server_and_after_a_while(local: Cloud) -> None:
    short(local)
    [worker] = wait_for("its worker to be idle", idle)
    servers()[0].kill()
    wait_for("its end", lambda: not worker.is_running())

    short(local)
    [worker] = wait_for("its worker to be idle", idle)
    wait_for("its end", lambda: not worker.is_running())
    assert servers(), "the server waits for further runs"
    local.launcher.local.close()
    wait_for("the server's end", lambda: not servers())


def test_a_killed_worker_fails_its_run_at_once(local: Cloud) -> None:
    run, pid = start(local)
    os.kill(pid, signal.SIGKILL)
    local.until(run, "FAILURE")  # the server reports it; no monitoring runs here
    # Dagster writes what it will do after the run's end.
    wait_for("Dagster's decision", lambda: local.fresh(run).tags.get("dagster/will_retry") == "true")
    assert "SIGKILL" in local.messages(run)
    assert local.fresh(run).tags["batch_gpu/failure"] == "worker-lost"
    assert local.launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def test_a_run_whose_end_the_storage_did_not_take_fails_for_the_storage(local: Cloud) -> None:
    run = local.run("loses_its_storage")
    local.instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    wait_for("the outage", (local.home / "storage-is-away").exists)
    assert local.status(run) == "STARTED"
    assert local.monitor() == []
    assert live_process(local.fresh(run)) is not None, "its worker waits for the storage"
    (local.home / "storage-is-back").touch()
    local.until(run, "FAILURE")
    assert "batch_gpu/failure" not in local.fresh(run).tags
    [failed] = local.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert failed.dagster_event is not None
    error = failed.dagster_event.job_failure_data.error
    assert error is not None
    assert classify_recorded(error) == "database-unavailable"


def test_a_worker_outlives_its_server_and_is_watched_by_its_process(local: Cloud) -> None:
    run, pid = start(local)
    servers()[0].kill()
    assert local.monitor() == []
    assert local.status(run) == "STARTED"

    os.kill(pid, signal.SIGKILL)
    wait_for("its end", lambda: live_process(run) is None)
    assert local.monitor() == []
    assert local.status(run) == "FAILURE"
    assert f"pid {pid}" in local.messages(run)


def test_the_next_run_starts_another_server_where_the_first_is_gone(local: Cloud) -> None:
    run, pid = start(local)
    first = servers()[0]
    first.kill()
    again, other = start(local)
    assert other != pid
    for each in (run, again):
        local.launcher.terminate(each.run_id)
        local.until(each, "CANCELED")


def test_a_server_that_has_imported_older_code_forks_nothing_more(
    local: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "newer_code.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(tmp_path))))
    local.configure(launcher={"compute": "local", "preload": [PROJECT, "newer_code"]})
    run, pid = start(local)
    first = servers()[0]
    (tmp_path / "newer_code.py").write_text("changed = True")
    again, other = start(local)
    assert psutil.Process(other).ppid() != first.pid
    assert psutil.Process(pid).ppid() == first.pid, "it waits for the worker that it has forked"
    for each in (run, again):
        local.launcher.terminate(each.run_id)
        local.until(each, "CANCELED")
    wait_for("its end after its last worker's", lambda: first not in servers())


def test_workers_and_server_end_although_their_parent_has_gone(local: Cloud) -> None:
    run, _ = start(local)
    [server] = servers()
    local.launcher.local.close()
    assert server in servers(), "its worker is not finished"
    local.launcher.terminate(run.run_id)
    local.until(run, "CANCELED")
    wait_for("the server's end", lambda: not servers())


def test_a_run_that_is_canceled_before_its_worker_begins_is_canceled(local: Cloud) -> None:
    run = local.run("waits")
    local.instance.report_run_canceling(run)
    local.instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    local.until(run, "CANCELED")
    assert not (local.home / "endless").exists()


def test_a_module_that_cannot_be_preloaded_stops_no_run(local: Cloud) -> None:
    local.configure(launcher={"compute": "local", "preload": ["no_such_module"]})
    run, _ = start(local)
    local.launcher.terminate(run.run_id)
    local.until(run, "CANCELED")


@pytest.mark.parametrize(
    ("tag", "alive"),
    [
        ("", False),
        (f"{os.getpid()} {start_time(os.getpid())}", False),  # it executes no run
        (f"{os.getpid()} 1", False),  # another process of that number
        (f"{os.getpid()} None", True),  # where there is no /proc
        ("4194305 7", False),
        ("4194305 None", False),
    ],
    ids=["no tag", "no run", "another", "alive, no /proc", "gone", "gone, no /proc"],
)
def test_a_process_is_recognised_by_number_start_and_name(cloud: Cloud, tag: str, alive: bool) -> None:
    run = cloud.run(tags={".dagster/batch_gpu.process": tag} if tag else {})
    assert (live_process(run) is not None) == alive


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
    ("compute", "gpus", "each", "jobs", "limit"),
    [
        ("local", 0, 1, "7", 1),
        ("local", 1, 1, None, 1),
        ("local", 4, 1, None, 4),
        ("local", 0, 3, None, 3),
        ("local", 4, 3, None, 12),
        ("batch", 4, 3, None, 1000),
        ("batch", 4, 3, "7", 7),
    ],
)
def test_the_pool_holds_as_many_runs_as_the_gpus_take(
    cloud: Cloud,
    monkeypatch: pytest.MonkeyPatch,
    compute: str,
    gpus: int,
    each: int,
    jobs: str | None,
    limit: int,
) -> None:
    if jobs is not None:
        monkeypatch.setenv("BATCH_GPU_MAX_JOBS", jobs)
    monkeypatch.setattr(pool, "gpu_count", lambda: gpus)
    instance = cloud.configure(launcher={"compute": compute, "runs_per_gpu": each})
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
