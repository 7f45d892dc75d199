"""What getting logs and metrics to CloudWatch costs: lines of a killed worker, time of a run, patience.

Real Dagster runs with dagster.yaml's log handler, the spool, the shipper as a process of its own, the local
AWS emulator. Three questions, each alone by its option:

--kills   workers are killed by SIGKILL at random moments of a run that logs: which of the lines, whose
          logging had returned, does CloudWatch not have in the end?
--rounds  the same video is analysed with logs and metrics on, off, and on with a CloudWatch that takes every
          connection and never answers, in turns in one process: what does a run take more?
--flood   more than the spool holds, while CloudWatch never answers: what does the slowest line take, how much
          of the disk is used, and how long does the shipper take to stop?

    .venv/bin/python bench/log_shipping.py [--kills 200] [--rounds 12] [--seconds 60] [--flood 64] [--record]
"""

import argparse
import json
import os
import random
import re
import select
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
from bench.report import machine, record, table
from capstone_dagster.storage.videos import record_upload

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("dagster", "boto3", "openvino")
_HANDLER = {"class": "capstone_dagster.logs.json_lines.RunLogHandler", "level": "DEBUG"}
# Some moment between a run's first line and its 600th or so.
_LONGEST_LIFE_S = 0.25
_FLOOD_LIMIT_MB = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the video")
    parser.add_argument("--flood", type=int, default=64, metavar="MB")
    parser.add_argument("--record", action="store_true", help="put the result into bench/RESULTS.md")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)  # this file as its own child
    options = parser.parse_args()
    if options.part:
        {"nursery": nursery, "runner": runner}[options.part[0]](*options.part[1:])
        return
    from capstone_dagster.local.demo import prepare
    from capstone_dagster.local.stack import join_environment, local_stack

    def tell(what: str, result: dict[str, Any]) -> None:
        shown = table(["", "value"], list(result.items()))
        print(machine(_PACKAGES), shown, json.dumps(result), sep="\n", flush=True)
        if options.record:
            command = shlex.join(["python", "-m", "bench.log_shipping", *sys.argv[1:]])
            record(f"Log shipping: {what}", command, shown, _PACKAGES)

    with (
        tempfile.TemporaryDirectory(prefix="capstone-bench-") as name,
        local_stack(Path(name) / "stack", with_dagster=False) as stack,
        silent_endpoint() as silence,
    ):
        folder = Path(name)
        prepare(stack)
        environment = join_environment(stack.environment) | {"CAPSTONE_LOG_FORMAT": "json"}
        if options.kills:
            tell("killed workers", kills(folder / "kills", environment, options.kills))
        if options.flood:
            tell("more than there is room for", flood(folder / "flood", environment, silence, options.flood))
        if options.rounds:
            measured = added_time(folder / "runs", environment, silence, options.rounds, options.seconds)
            tell("time of a run", measured)


# --- killed workers ---


def kills(folder: Path, environment: Mapping[str, str], count: int) -> dict[str, Any]:
    """Kill so many workers, and look for their lines in CloudWatch."""
    folder.mkdir()
    told = folder / "told.json"
    inside = {**environment, "CAPSTONE_LOG_SPOOL": str(folder / "spool")}
    with shipper(folder / "spool", inside):
        run_part(["nursery", str(told), str(count)], inside, folder / "nursery.log")
    return arrivals(told, environment["AWS_ENDPOINT_URL"])


def arrivals(told: Path, endpoint_url: str) -> dict[str, Any]:
    """Compare what CloudWatch has with how far each worker had come."""
    from capstone_dagster.catalog.log_groups import VIDEO_ANALYSIS
    from capstone_dagster.local.aws import client

    last = {int(seed): number for seed, number in json.loads(told.read_text()).items()}
    arrived: dict[int, list[int]] = {seed: [] for seed in last}
    for message in messages(client("logs", endpoint_url), VIDEO_ANALYSIS.name):
        found = re.search(r'"message": "kill (\d+) line (\d+)"', message)
        if found:
            arrived[int(found[1])].append(int(found[2]))
    lost = sum(len(set(range(number + 1)) - set(arrived[seed])) for seed, number in last.items())
    unordered = sum(numbers != sorted(numbers) for numbers in arrived.values())
    twice = sum(len(numbers) - len(set(numbers)) for numbers in arrived.values())
    return {
        "workers killed": len(last),
        "lines whose logging had returned": sum(number + 1 for number in last.values()),
        "of them not in CloudWatch": lost,
        "in CloudWatch twice": twice,
        "streams out of order": unordered,
    }


def nursery(told: str, count: str) -> None:
    """Forks workers from a warm process, kills each of them, and writes down how far each had come."""
    import dagster as dg

    @dg.op
    def talk(context: dg.OpExecutionContext) -> None:
        seed, acknowledge = int(os.environ["SEED"]), int(os.environ["ACKNOWLEDGE"])
        number = 0
        while True:
            context.log.info(f"kill {seed} line {number}")
            os.write(acknowledge, b"%d\n" % number)
            number += 1

    @dg.job(executor_def=dg.in_process_executor)
    def talking() -> None:
        talk()

    settings = {"python_logs": {"dagster_handler_config": {"handlers": {"lines": _HANDLER}}}}
    last: dict[int, int] = {}
    for seed in range(int(count)):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ |= {"SEED": str(seed), "ACKNOWLEDGE": str(writing)}
            with dg.DagsterInstance.ephemeral(settings=settings) as instance:
                talking.execute_in_process(instance=instance)
            os._exit(1)
        os.close(writing)
        select.select([reading], [], [])
        # Asleep: what it writes stays in the pipe, 64 KB of it being more than it gets to.
        time.sleep(random.Random(seed).uniform(0.0, _LONGEST_LIFE_S))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as acknowledged:
            last[seed] = int(acknowledged.read().split()[-1])
    Path(told).write_text(json.dumps(last))


# --- time of a run ---


def added_time(
    folder: Path, environment: Mapping[str, str], silence: str, rounds: int, seconds: float
) -> dict[str, Any]:
    """Compare runs with everything on, off, and with a CloudWatch that hangs."""
    from bench.footage import repeat
    from capstone_dagster.local.clip import make_demo_clip

    folder.mkdir()
    video = repeat(make_demo_clip(folder / "clip.mp4").path, folder / "video.mp4", seconds=seconds)
    on, hanging, times = folder / "on", folder / "hanging", folder / "times.json"
    with (
        shipper(on, environment),
        shipper(hanging, environment | {"AWS_ENDPOINT_URL": silence}),
    ):
        inside = {**environment, "CAPSTONE_LOG_SPOOL": str(on)}
        run_part(
            ["runner", str(video), str(times), str(on), str(hanging), str(rounds)],
            inside,
            folder / "runner.log",
        )
    measured: list[dict[str, dict[str, float]]] = json.loads(times.read_text())

    def ratios(what: str, one: str, other: str) -> list[float]:
        return sorted(each[one][what] / each[other][what] for each in measured)

    def shown(values: list[float]) -> str:
        quarter = len(values) // 4
        middle = statistics.median(values)
        low, high = values[quarter], values[-1 - quarter]
        return f"{100 * middle - 100:+.2f} % ({100 * low - 100:+.1f} to {100 * high - 100:+.1f})"

    def seconds_of(what: str, which: str) -> str:
        return f"{statistics.median(each[which][what] for each in measured):.2f} s"

    return {
        "rounds of runs": rounds,
        "a run without logs and metrics": seconds_of("wall", "off"),
        "with them: time, median of ratios (middle half)": shown(ratios("wall", "on", "off")),
        "with them: processor time": shown(ratios("cpu", "on", "off")),
        "while CloudWatch hangs, against with them: time": shown(ratios("wall", "hanging", "on")),
        "while CloudWatch hangs, against with them: processor time": shown(ratios("cpu", "hanging", "on")),
        "noise: off against off, time": shown(ratios("wall", "off", "off again")),
    }


def runner(video: str, times: str, on: str, hanging: str, rounds: str) -> None:
    """Runs the same analysis in turns, each time as new work, and writes down what each took."""
    import logging

    import dagster as dg
    import yaml

    from capstone_dagster.definitions import defs, services
    from capstone_dagster.intake.identity import identify
    from capstone_dagster.intake.messages import AnalysisRequest
    from capstone_dagster.intake.queue import ReceivedMessage
    from capstone_dagster.intake.runs import NewUpload, run_request
    from capstone_dagster.logs.json_lines import LineHandler
    from capstone_dagster.metrics.emission import Metrics
    from capstone_dagster.settings import read_settings
    from capstone_dagster.storage.sources import head_source

    bucket, key = services.settings.required("raw_bucket"), "bench/video.mp4"
    services.s3.upload_file(video, bucket, key)
    upload = identify(AnalysisRequest(bucket, key), head_source(services.s3, bucket, key), services.settings)
    services.database.transact(record_upload, upload)
    home = Path(tempfile.mkdtemp(dir=Path(times).parent))
    configured = yaml.safe_load((_ROOT / "dagster.yaml").read_text())
    del configured["python_logs"]
    (home / "dagster.yaml").write_text(yaml.safe_dump(configured))
    with dg.DagsterInstance.get() as with_logs, dg.DagsterInstance.from_config(str(home)) as without_logs:
        with_logs.add_dynamic_partitions("videos", [upload.video_id])
        job = defs.resolve_job_def("analyze_upload")
        root = logging.getLogger()
        handlers = [each for each in root.handlers if isinstance(each, LineHandler)]

        def run(which: str, number: int) -> dict[str, float]:
            # A nonce of its own: what was analysed before is not taken for the answer.
            message = ReceivedMessage(f"{which}-{number}", "", "", 0, 1)
            asked = AnalysisRequest(bucket, key, force=True)
            request = run_request(NewUpload(f"{which}-{number}", upload, asked, message))
            off = which.startswith("off")
            os.environ["CAPSTONE_LOG_SPOOL"] = hanging if which == "hanging" else on
            services.__dict__["metrics"] = Metrics(read_settings(metrics="off" if off else "put"))
            for handler in handlers:
                (root.removeHandler if off else root.addHandler)(handler)
            started, used = time.perf_counter(), time.process_time()
            result = job.execute_in_process(
                partition_key=upload.video_id,
                run_config=dict(request.run_config),
                tags=dict(request.tags),
                instance=without_logs if off else with_logs,
            )
            took = {"wall": time.perf_counter() - started, "cpu": time.process_time() - used}
            assert result.success
            return took

        variants = ["off", "on", "hanging", "off again"]
        for which in variants:  # loads the model, opens every connection: not counted
            run(which, -1)
        measured = []
        for number in range(int(rounds)):
            turn = variants[number % 4 :] + variants[: number % 4]
            measured.append({which: run(which, number) for which in turn})
            print(json.dumps(measured[-1]), file=sys.stderr)
    Path(times).write_text(json.dumps(measured))


# --- more than the spool holds ---


def flood(folder: Path, environment: Mapping[str, str], silence: str, megabytes: int) -> dict[str, Any]:
    """Write more than there is room for while nothing gets away, then stop the shipper."""
    from capstone_dagster.catalog.log_groups import VIDEO_ANALYSIS
    from capstone_dagster.logs.spool import Spool, used_bytes

    folder.mkdir()
    inside = {**environment, "AWS_ENDPOINT_URL": silence, "CAPSTONE_LOG_SPOOL_MB": str(_FLOOD_LIMIT_MB)}
    spool = Spool(folder / "spool", _FLOOD_LIMIT_MB * 1024 * 1024)
    slowest, most, written = 0.0, 0, 0
    with shipper(folder / "spool", inside) as process:
        while written < megabytes * 1024 * 1024:
            line = json.dumps({"message": "x" * 1000, "number": written})
            started = time.perf_counter()
            spool.append(VIDEO_ANALYSIS.name, line)
            slowest = max(slowest, time.perf_counter() - started)
            written += len(line)
            if random.random() < 0.01:
                most = max(most, used_bytes(folder / "spool"))
        time.sleep(5)  # it is in a call now
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait()
        stopped = time.monotonic() - started
    return {
        "flood, against a limit of 4 MB": f"{megabytes} MB",
        "slowest line": f"{1000 * slowest:.1f} ms",
        "most that the spool took": f"{most / 2**20:.1f} MB",
        "shipper's end, while CloudWatch hangs": f"{stopped:.1f} s",
    }


# --- processes around it ---


@contextmanager
def shipper(spool: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The shipper of a spool; drained at the end."""
    with (spool.parent / f"shipper-{spool.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "capstone_dagster.logs.shipping.shipper", "--spool", str(spool)],
            env=dict(environment),
            stdout=log,
            stderr=log,
            cwd=_ROOT,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextmanager
def silent_endpoint() -> Iterator[str]:
    """An address that takes every connection and never answers."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for each in taken:
        each.close()


def run_part(part: list[str], environment: Mapping[str, str], log: Path) -> None:
    """Run this file as its own child."""
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, str(Path(__file__)), "--part", *part],
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=_ROOT,
        )
    if done.returncode != 0:
        sys.exit(f"{part[0]} ended with {done.returncode}:\n{log.read_text(errors='replace')[-3000:]}")


def messages(logs: Any, group: str) -> Iterator[str]:
    """Every event of a group, stream by stream in order."""
    streams = logs.get_paginator("describe_log_streams").paginate(logGroupName=group)
    for stream in [each["logStreamName"] for page in streams for each in page["logStreams"]]:
        token: dict[str, str] = {}
        while True:
            page = logs.get_log_events(
                logGroupName=group, logStreamName=stream, startFromHead=True, limit=10_000, **token
            )
            yield from (event["message"] for event in page["events"])
            if not page["events"] or page["nextForwardToken"] == token.get("nextToken"):
                break
            token = {"nextToken": page["nextForwardToken"]}


if __name__ == "__main__":
    main()
