"""How many short clips a minute the local stack finishes, and what each costs.

Starts `capstone dev` on a folder of its own, uploads one clip to warm up, then a burst of clips at once, and
watches `current_status` until all are done. Another checkout can be measured by the same script, so that two
versions are compared on one machine; run it on an idle one.

    .venv/bin/python bench/short_clips.py [--clips 40] [--seconds 2] [--checkout DIR] [--record]

The last line is one JSON object.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
import boto3
import psutil
import psycopg

from bench import report
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.processes import free_port
from capstone_dagster.testing.scenes import cut_clip

_GIVE_UP_S = 1800.0
_STATES = "SELECT state, count(*) FROM capstone.current_status GROUP BY state"
_PASS = """
SELECT avg(a.seconds) FROM capstone.videos v JOIN capstone.analyses a USING (video_id)
WHERE v.key LIKE 'burst/%'
"""
# By kind of event, what Dagster's event log holds of all runs.
_EVENTS = """
SELECT coalesce(dagster_event_type, 'log line'), count(*), sum(length(event)) FROM event_logs
GROUP BY 1 ORDER BY 3 DESC
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--record", action="store_true", help="write the result into bench/RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        clip = cut_clip(DEMO_CLIP, Path(folder) / "clip.mp4", options.seconds)
        result = measure(clip, options.clips, options.checkout.resolve(), Path(folder) / "state")
    if options.record:
        rows = [(name.replace("_", " "), value) for name, value in result.items()]
        body = report.table(("measured", "value"), rows)
        report.record("Short clips", "python bench/short_clips.py --record", body, ("dagster", "openvino"))
    print(json.dumps(result))


def measure(clip: Path, count: int, checkout: Path, state: Path) -> dict[str, Any]:
    """Run a stack of this checkout, and the burst through it."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "capstone_dagster.cli", "dev", "--state", str(state)]
    stack = subprocess.Popen(
        [*command, "--port", str(free_port())], cwd=checkout, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        variables = _variables(state / "env", stack)
        body = clip.read_bytes()
        _upload(variables, "warm/up.mp4", body + bytes(1))
        _until(variables, stack, 1)
        before = _processor_s(stack.pid)
        began = time.monotonic()
        for number in range(count):
            # Bytes behind the last box belong to no frame, and make another file of it.
            _upload(variables, f"burst/{number}.mp4", body + bytes(number + 2))
        uploaded = time.monotonic()
        with _held() as held:
            memory = _until(variables, stack, count + 1)
        drained = time.monotonic()
        used = _processor_s(stack.pid) - before
        with psycopg.connect(_url(variables)) as database:
            row = database.execute(_PASS).fetchone()
        with psycopg.connect(_url(variables, "DAGSTER_POSTGRES_URL")) as database:
            clips = count + 1  # the one that warmed up as well
            events = [
                (kind, rows / clips, size / clips / 1000)
                for kind, rows, size in database.execute(_EVENTS).fetchall()
            ]
    finally:
        stack.send_signal(signal.SIGINT)
        stack.wait(60)
    assert row is not None
    for kind, rows, size in events:
        print(f"{kind}: {rows:.1f} rows, {size:.1f} kB a clip", file=sys.stderr)
    return {
        "clips": count,
        "upload_s": round(uploaded - began, 1),
        "uploaded_to_all_published_s": round(drained - began, 1),
        "videos_per_minute": round(60 * count / (drained - began), 1),
        "processor_s_a_clip": round(used / count, 2),
        "event_rows_a_clip": round(sum(rows for _, rows, _ in events), 1),
        "event_kb_a_clip": round(sum(size for _, _, size in events), 1),
        "pass_s": round(float(row[0]), 2),
        # Loading the model, which the turn includes, is not in the pass: most clips meet a loaded one.
        "device_held_over_pass": round(sum(held) / (count * float(row[0])), 2),
        "memory_mb_median": round(statistics.median(memory)),
        "memory_mb_peak": round(max(memory)),
    }


def _variables(path: Path, stack: "subprocess.Popen[bytes]") -> dict[str, str]:
    """The stack's variables, once the stack works."""
    give_up = time.monotonic() + _GIVE_UP_S
    while True:
        if stack.poll() is not None:
            raise SystemExit("The stack did not start.")
        if path.exists():
            words = shlex.split(path.read_text(), comments=True)
            variables = dict(word.split("=", 1) for word in words if "=" in word)
            try:
                with psycopg.connect(_url(variables)) as database:
                    database.execute(_STATES)
                return variables
            except psycopg.Error:
                pass
        assert time.monotonic() < give_up
        time.sleep(0.2)


def _url(variables: dict[str, str], name: str = "CAPSTONE_DATABASE_URL") -> str:
    return "postgresql://" + variables[name].partition("://")[2]


def _upload(variables: dict[str, str], key: str, body: bytes) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables.get("AWS_DEFAULT_REGION", "ap-northeast-2"),
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    s3.put_object(Bucket=variables["CAPSTONE_RAW_BUCKET"], Key=key, Body=body)


def _until(variables: dict[str, str], stack: "subprocess.Popen[bytes]", count: int) -> list[float]:
    """Wait until so many videos are done; the stack's memory in MB, once a second meanwhile."""
    memory: list[float] = []
    give_up = time.monotonic() + _GIVE_UP_S
    with psycopg.connect(_url(variables), autocommit=True) as database:
        while True:
            states: dict[str, int] = dict(database.execute(_STATES).fetchall())
            print(f"\r{states}   ", end="", file=sys.stderr, flush=True)
            if states.get("done", 0) >= count:
                print(file=sys.stderr)
                return memory
            if time.monotonic() > give_up or stack.poll() is not None:
                raise SystemExit(f"Not all were done: {states}")
            memory.append(_memory_mb(stack.pid))
            time.sleep(1)


@contextmanager
def _held() -> Iterator[list[float]]:
    """Seconds for which a run holds this machine's device within the block, by the kernel's list of locks."""
    held: list[float] = []
    over = threading.Event()

    def look() -> None:
        last = time.monotonic()
        while not over.wait(0.01):
            devices = {
                str(file.stat().st_ino) for file in Path(tempfile.gettempdir()).glob("capstone-*.device-*")
            }
            locked = {
                line.split()[5].rpartition(":")[2] for line in Path("/proc/locks").read_text().splitlines()
            }
            now = time.monotonic()
            if devices & locked:
                held.append(now - last)
            last = now

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield held
    finally:
        over.set()
        looking.join()


def _processes(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def _processor_s(pid: int) -> float:
    """What all processes below this one have used, those that they have waited for included."""
    total = 0.0
    for process in _processes(pid):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory_mb(pid: int) -> float:
    """The processes' proportional set size: shared pages count once."""
    total = 0
    for process in _processes(pid):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1e6


if __name__ == "__main__":
    main()
