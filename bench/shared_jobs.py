"""What a video costs in machine time on AWS Batch where a job executes 1, 5 or 20 runs: by the fake Batch.

Runs that analyse a clip each wait in Dagster's queue, one leaves it at a time, and the fake executes their
jobs by the launcher's own worker, on a PostgreSQL of its own. Containers are processes here: their start is
Python's imports, without pulling an image or waiting for a machine.

    .venv/bin/python bench/shared_jobs.py [--runs 1 5 20] [--clips 20]

The last line is one JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a file, too
import dagster as dg
import sqlalchemy as sa
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from batch_gpu.testing import Machines, Queue, fake_batch_server
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.postgres import EVENT_DATABASE, postgres_server

_GIVE_UP_S = 900.0
_FOLDER = "BENCH_SHARED_JOBS"
_analyzers: list[Any] = []


@dg.op(tags={"batch_gpu/compute": "gpu"})
def analyze(context: dg.OpExecutionContext) -> None:
    """One pass over the clip; the process loads the model once."""
    from capstone_dagster.local.analyze_file import FileAnalyzer
    from capstone_dagster.settings import read_settings

    if not _analyzers:
        _analyzers.append(FileAnalyzer(read_settings(), report=lambda *_: None))
    folder = Path(os.environ[_FOLDER])
    done = _analyzers[0].analyze(folder / "clip.mp4", folder / context.run_id, report=lambda *_: None)
    with (folder / "passes").open("a") as file:
        file.write(f"{done.seconds}\n")


@dg.job(executor_def=dg.in_process_executor)
def analyze_clip() -> None:
    """One run a clip."""
    analyze()


defs = dg.Definitions(jobs=[analyze_clip])


def measure(runs_per_job: int, clips: int, folder: Path, storage_url: str) -> dict[str, Any]:
    """One burst on an instance of its own."""
    inside = {**os.environ, "DAGSTER_HOME": str(folder), _FOLDER: str(folder), "PYTHONPATH": str(ROOT)}
    inside["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with ExitStack() as running:
        server = running.enter_context(
            fake_batch_server([Queue("gpu", Machines(gpus=1)), Queue("cpu")], environment=inside, cwd=ROOT)
        )
        os.environ |= server.environment
        server.batch.define_job("worker")
        job = {"job_definition": "worker", "runs_per_job": runs_per_job}
        launcher = {"gpu": {**job, "job_queue": "gpu", "gpus": 1}, "cpu": {**job, "job_queue": "cpu"}}
        settings = {
            "storage": {"postgres": {"postgres_url": storage_url}},
            "run_launcher": {
                "module": "batch_gpu.launcher",
                "class": "BatchGpuRunLauncher",
                "config": launcher,
            },
            "concurrency": {"runs": {"max_concurrent_runs": 1}},
            "telemetry": {"enabled": False},
        }
        (folder / "dagster.yaml").write_text(yaml.safe_dump(settings))
        instance = running.enter_context(dg.DagsterInstance.from_config(str(folder)))
        runs = [_queued(instance) for _ in range(clips)]
        began = time.monotonic()
        daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
        workspace = running.enter_context(WorkspaceProcessContext(instance, None))
        while not all(run.is_finished for run in instance.get_runs(dg.RunsFilter(run_ids=runs))):
            if time.monotonic() - began > _GIVE_UP_S:
                raise SystemExit("Not all clips were analysed.")
            list(daemon.run_iteration(workspace))
            time.sleep(1)
        drained_s = time.monotonic() - began
        while any(job["status"] not in ("SUCCEEDED", "FAILED") for job in server.batch.jobs()):
            time.sleep(0.2)
        jobs = server.batch.jobs()
    passes = [float(line) for line in (folder / "passes").read_text().split()]
    assert len(passes) == clips, "every clip was analysed once"
    held_s = sum(job["stoppedAt"] - job["startedAt"] for job in jobs) / 1000
    return {
        "runs_per_job": runs_per_job,
        "clips": clips,
        "jobs": len(jobs),
        "machine_s_a_video": round(held_s / clips, 2),
        "pass_s": round(sum(passes) / clips, 2),
        "drained_s": round(drained_s, 1),
    }


def _queued(instance: dg.DagsterInstance) -> str:
    repository = ReconstructableRepository.for_module("bench.shared_jobs", "defs", str(ROOT))
    job = repository.get_reconstructable_job("analyze_clip")
    location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("bench"), "__repository__")
    run = instance.create_run_for_job(
        job.get_definition(),
        status=dg.DagsterRunStatus.QUEUED,
        job_code_origin=job.get_python_origin(),
        remote_job_origin=RemoteJobOrigin(location, "analyze_clip"),
    )
    return run.run_id


def main() -> None:
    from capstone_dagster.testing.scenes import cut_clip

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 5, 20], help="that one job executes")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each clip")
    options = parser.parse_args()
    results = []
    with ExitStack() as running:
        place = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="capstone-bench-")))
        place.chmod(0o755)  # PostgreSQL runs as another user
        server = running.enter_context(postgres_server(place / "data", place / "postgres.log"))
        for number, runs in enumerate(options.runs):
            folder = place / str(number)
            folder.mkdir()
            cut_clip(DEMO_CLIP, folder / "clip.mp4", options.seconds)
            url = sa.make_url(server.url(EVENT_DATABASE, "psycopg2"))
            name = f"dagster_{number}"
            engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
            engine.dispose()
            storage = url.set(database=name).render_as_string(hide_password=False)
            results.append(measure(runs, options.clips, folder, storage))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
