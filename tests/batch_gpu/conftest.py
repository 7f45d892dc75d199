"""A fake Batch, a real Dagster instance on a real PostgreSQL, and runs to launch from one to the other."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._utils.error import SerializableErrorInfo

from batch_gpu.launcher import BatchGpuRunLauncher
from batch_gpu.sensor import Watched, watch_runs
from batch_gpu.testing import FakeBatch, FakeBatchServer, Machines, Queue, fake_batch_server
from tests.support.waiting import scaled, wait_for

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "tests.batch_gpu.project"


@dataclass
class Cloud:
    """Everything between a run and its process."""

    home: Path
    server: FakeBatchServer
    storage_url: str
    stack: ExitStack
    instances: list[dg.DagsterInstance] = field(default_factory=list)

    @property
    def batch(self) -> FakeBatch:
        return self.server.batch

    @property
    def instance(self) -> dg.DagsterInstance:
        return self.instances[-1]

    @property
    def launcher(self) -> BatchGpuRunLauncher:
        launcher = self.instance.run_launcher
        assert isinstance(launcher, BatchGpuRunLauncher)
        return launcher

    def configure(self, **settings: Any) -> dg.DagsterInstance:
        """Start another Dagster process, so to speak: a fresh instance on the same storage."""
        launcher: dict[str, Any] = {
            "gpu": {"job_queue": "gpu", "job_definition": "worker", "gpus": 1},
            "cpu": {"job_queue": "cpu", "job_definition": "worker"},
            "submit_deadline_seconds": round(scaled(20)),
            **settings.pop("launcher", {}),
        }
        instance = {
            "storage": {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}},
            "run_launcher": {
                "module": "batch_gpu.launcher",
                "class": "BatchGpuRunLauncher",
                "config": launcher,
            },
            # The shipped intervals, but for what a test would have to wait for.
            "run_monitoring": {
                "enabled": True,
                "poll_interval_seconds": 1,
                "start_timeout_seconds": 14400,
                "max_resume_run_attempts": 0,
            },
            "run_retries": {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False},
            "telemetry": {"enabled": False},
            **settings,
        }
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(instance))
        self.instances.append(self.stack.enter_context(dg.DagsterInstance.from_config(str(self.home))))
        return self.instance

    # --- runs ---

    def queued(self, job: str = "look_think_tell") -> dg.DagsterRun:
        """A run in the run queue."""
        location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("project"), "__repository__")
        origin = RemoteJobOrigin(location, job)
        return self.run(job, status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)

    def run(
        self,
        job: str = "look_think_tell",
        status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTING,
        **options: Any,
    ) -> dg.DagsterRun:
        """A run as the run queue hands it to the launcher."""
        repository = ReconstructableRepository.for_module(PROJECT, "defs", str(ROOT))
        recon = repository.get_reconstructable_job(job)
        return self.instance.create_run_for_job(
            recon.get_definition(),
            status=status,
            job_code_origin=recon.get_python_origin(),
            **options,
        )

    def launch(self, run: dg.DagsterRun) -> None:
        self.launcher.submit(run)

    def fresh(self, run: dg.DagsterRun) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found

    def status(self, run: dg.DagsterRun) -> str:
        return self.fresh(run).status.value

    def until(self, run: dg.DagsterRun, status: str) -> dg.DagsterRun:
        try:
            wait_for(f"run {status}", lambda: self.status(run) == status, deadline_s=45)
        except AssertionError as error:
            details = "\n".join([*self.jobs(), self.messages(run), *self.log_lines()])
            raise AssertionError(f"{error}\n{details}") from None
        return self.fresh(run)

    def messages(self, run: dg.DagsterRun) -> str:
        """All that a person reads in the run's log."""
        return "\n".join(str(entry.message) for entry in self.instance.all_logs(run.run_id))

    # --- jobs ---

    def jobs(self) -> list[str]:
        return [f"{job['jobName']} {job['status']}" for job in self.batch.jobs()]

    def job(self) -> Mapping[str, Any]:
        [job] = self.batch.jobs()
        return job

    def log_lines(self) -> list[str]:
        """What the containers wrote."""
        return [line for job in self.batch.jobs() for line in self.batch.log_lines(job["jobId"])]

    def until_job(self, status: str) -> Mapping[str, Any]:
        wait_for(f"a job that is {status}", lambda: [j for j in self.batch.jobs() if j["status"] == status])
        return next(j for j in self.batch.jobs() if j["status"] == status)

    # --- the daemon's passes ---

    def monitor(self) -> list[SerializableErrorInfo]:
        """One pass of Dagster's own run monitoring; the errors that it met."""
        with WorkspaceProcessContext(self.instance, None) as context:
            logger = logging.getLogger("monitoring")
            return [error for error in execute_run_monitoring_iteration(context, logger) if error]

    def watch(self, later_s: float = 0.0) -> Watched:
        """One tick of the sensor, `later_s` seconds from now."""
        import time

        return watch_runs(self.instance, self.launcher, now=lambda: time.time() + later_s)

    def workspace(self) -> WorkspaceProcessContext:
        """The project as the web server and the daemon load it."""
        target = ModuleTarget(
            module_name=PROJECT, attribute=None, working_directory=str(ROOT), location_name="project"
        )
        return self.stack.enter_context(WorkspaceProcessContext(self.instance, target))


@pytest.fixture
def cloud(dagster_storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    variables = {
        "DAGSTER_POSTGRES_URL": dagster_storage_url,
        "DAGSTER_HOME": str(tmp_path),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "BATCH_GPU_TEST": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    queues = [Queue("gpu", Machines(gpus=2)), Queue("cpu", Machines())]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    inside = {"PATH": path, **variables}
    with (
        ExitStack() as stack,
        fake_batch_server(queues, environment=inside, cwd=ROOT, stop_grace_s=scaled(10)) as server,
    ):
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        server.batch.define_job("worker", command=[sys.executable, "-c", ""])
        made = Cloud(tmp_path, server, dagster_storage_url, stack)
        made.configure()
        yield made


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], Any]], threading.Thread]]:
    """Run a function in a thread that is waited for at the end."""
    threads: list[threading.Thread] = []

    def begin(work: Callable[[], Any]) -> threading.Thread:
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return threads[-1]

    yield begin
    for thread in threads:
        thread.join(timeout=scaled(60))
        assert not thread.is_alive()
