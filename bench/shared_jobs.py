"""What a video costs in machine time on AWS Batch where a job executes 1, 5 or 20 runs: by the fake Batch.

Starts the local stack with its runs on the fake, uploads a burst of clips, and adds up how long the jobs had
their machine. Containers are processes here: their start is Python's imports, without pulling an image or
waiting for a machine.

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
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
import yaml

from batch_gpu.testing import FakeBatchServer
from bench.short_clips import cut
from capstone_dagster.clients import aws_client
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.cloud import GPU_QUEUE, fake_batch
from capstone_dagster.local.demo import prepare
from capstone_dagster.local.stack import LocalStack, enter_environment, local_stack, repository_files

_GIVE_UP_S = 900.0
_DONE = "SELECT count(*) FROM capstone.current_status WHERE state = 'done'"
_PASS = "SELECT avg(seconds) FROM capstone.analyses"


def measure(runs_per_job: int, clip: Path, clips: int, folder: Path) -> dict[str, Any]:
    """One burst on a stack of its own."""
    files = repository_files()
    config = yaml.safe_load(files.instance.read_text())
    config["run_launcher"]["config"]["gpu"]["runs_per_job"] = runs_per_job
    instance = folder / "dagster.yaml"
    instance.write_text(yaml.safe_dump(config))
    servers: list[FakeBatchServer] = []
    kept = dict(os.environ)
    with ExitStack() as running:

        def go_to_the_cloud(stack: LocalStack) -> None:
            prepare(stack)
            servers.append(running.enter_context(fake_batch(stack)))

        stack = running.enter_context(
            local_stack(
                folder / "state",
                webserver_port=None,
                dagster_files=replace(files, instance=instance),
                before_dagster=go_to_the_cloud,
            )
        )
        enter_environment(stack.environment)
        s3, bucket = aws_client("s3"), stack.environment["CAPSTONE_RAW_BUCKET"]
        body = clip.read_bytes()
        began = time.monotonic()
        for number in range(clips):
            # Bytes behind the last box belong to no frame, and make another file of it.
            s3.put_object(Bucket=bucket, Key=f"burst/{number}.mp4", Body=body + bytes(number + 1))
        while stack.postgres.value("capstone", _DONE) < clips:
            if time.monotonic() - began > _GIVE_UP_S:
                raise SystemExit("Not all clips were analysed.")
            time.sleep(0.5)
        drained_s = time.monotonic() - began
        pass_s = float(stack.postgres.value("capstone", _PASS))
        while any(job["status"] not in ("SUCCEEDED", "FAILED") for job in servers[0].batch.jobs()):
            time.sleep(0.2)
        jobs = [job for job in servers[0].batch.jobs() if job["jobQueue"].endswith(GPU_QUEUE)]
    os.environ.clear()
    os.environ.update(kept)
    held_s = sum(job["stoppedAt"] - job["startedAt"] for job in jobs) / 1000
    return {
        "runs_per_job": runs_per_job,
        "clips": clips,
        "jobs": len(jobs),
        "machine_s_a_video": round(held_s / clips, 2),
        "pass_s": round(pass_s, 2),
        "drained_s": round(drained_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 5, 20], help="that one job executes")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each clip")
    options = parser.parse_args()
    results = []
    for runs in options.runs:
        with tempfile.TemporaryDirectory(prefix="capstone-bench-") as name:
            folder = Path(name)
            clip = cut(DEMO_CLIP, folder / "clip.mp4", options.seconds)
            results.append(measure(runs, clip, options.clips, folder))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
