"""What the local stack costs while it has nothing to do, and while 20 runs wait: one JSON object.

Processor seconds come from /proc, those of processes that have ended included; connections and sensor ticks
from PostgreSQL's own counters. Nothing else should run on the machine meanwhile.

    .venv/bin/python bench/idle.py [--seconds 90] [--queued 20]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
import psutil
import psycopg

if TYPE_CHECKING:
    from capstone_dagster.local.stack import LocalStack

# Caches fill, the first ticks and reloads of the workspace are over.
_SETTLING_S = 30.0
_DEADLINE_S = 600.0
# What a process's command line has in it, the first that matches.
_PARTS = {
    "runs": ("execute_run", "multiprocessing", "fork_server"),
    "daemon": ("dagster._daemon",),
    "webserver": ("capstone_dagster.webserver",),
    "code server": ("grpc", "code_server"),
    "PostgreSQL": ("postgres",),
    "AWS emulator": ("ministack",),
}


@dataclass(frozen=True)
class Reading:
    """The counters at one moment."""

    at: float
    cpu_s: Counter[str]
    connections: int
    ticks: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="how long to look")
    parser.add_argument("--queued", type=int, default=20, help="runs that wait in the second part")
    options = parser.parse_args()
    from capstone_dagster.local.clip import DEMO_CLIP
    from capstone_dagster.local.demo import prepare
    from capstone_dagster.local.stack import enter_environment, local_stack

    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        # PostgreSQL runs as another user, who may not enter what only root may.
        os.chmod(folder, 0o755)
        with local_stack(Path(folder) / "state", webserver_port=None, before_dagster=prepare) as stack:
            enter_environment(stack.environment)
            result = {"seconds": options.seconds, "idle": _measured(stack, options.seconds)}
            if options.queued:
                _queue(stack, DEMO_CLIP, options.queued)
                result[f"queued_{options.queued}"] = _measured(stack, options.seconds)
    print(json.dumps(result))


def _measured(stack: LocalStack, seconds: float) -> dict[str, object]:
    """What the stack's processes use within this time."""
    time.sleep(_SETTLING_S)
    before = _read(stack)
    time.sleep(seconds)
    after = _read(stack)
    used = after.cpu_s - before.cpu_s
    processes = list(_processes())
    pss_mb: Counter[str] = Counter()
    for each in processes:
        pss_mb[_part(each)] += each.memory_full_info().pss // 2**20
    return {
        "cpu_s": round(used.total(), 1),
        "cpu_s_by_part": {part: round(value, 1) for part, value in used.most_common()},
        "connections": after.connections - before.connections,
        "ticks_per_minute": round((after.ticks - before.ticks) * 60 / (after.at - before.at), 1),
        "processes": len(processes),
        "rss_mb": round(sum(each.memory_info().rss for each in processes) / 2**20),
        "pss_mb": pss_mb.total(),
        "pss_mb_by_part": dict(pss_mb.most_common()),
    }


def _read(stack: LocalStack) -> Reading:
    cpu_s: Counter[str] = Counter()
    for process in _processes():
        times = process.cpu_times()
        cpu_s[_part(process)] += times.user + times.system + times.children_user + times.children_system
    url = stack.postgres.url("dagster", "psycopg").replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT (SELECT sum(sessions) FROM pg_stat_database), (SELECT count(*) FROM job_ticks)"
        ).fetchone()
    assert row is not None
    return Reading(time.monotonic(), cpu_s, int(row[0]), int(row[1]))


def _processes() -> Iterator[psutil.Process]:
    """Everything that descends from this process, which is the stack."""
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            yield process


def _part(process: psutil.Process) -> str:
    """By the process or its nearest ancestor that is recognised; wardens count as what they guard."""
    line = " ".join(process.cmdline())
    found = (part for part, words in _PARTS.items() if any(word in line for word in words))
    return next(found, "other")


def _queue(stack: LocalStack, clip: Path, runs: int) -> None:
    """Let this many uploads become runs that wait for a GPU."""
    import boto3
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        instance.event_log_storage.set_concurrency_slots("gpu", 0)
        s3 = boto3.client("s3")
        for number in range(runs):
            # Zeros behind the last box are no part of the film, but make other bytes of it.
            body = clip.read_bytes() + bytes(number)
            s3.put_object(Bucket=stack.resources.raw_bucket, Key=f"gate/{number}.mp4", Body=body)
        waiting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
        give_up = time.monotonic() + _DEADLINE_S
        while instance.get_runs_count(waiting) < runs:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{instance.get_runs_count(waiting)} of {runs} runs are queued")
            time.sleep(1)


if __name__ == "__main__":
    main()
