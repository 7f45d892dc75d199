"""Stands in for Docker's awslogs driver and for CloudWatch's reading of embedded metrics, on one machine.

    python -m capstone_dagster.local.awslogs FOLDER

A process of its own follows the files that the stack's Dagster processes write their output to. It puts each
line into the log group that the container on AWS would write to, in the emulator. What a process has written
is in its file, so a worker that is killed loses no line. What the emulator does not take is sent again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from capstone_dagster.catalog.log_groups import DAEMON, INTAKE, VIDEO_ANALYSIS, WEBSERVER
from capstone_dagster.clients import aws_client
from capstone_dagster.local.processes import ChildProcess, Command, start

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_logs import CloudWatchLogsClient

_POLL_S = 0.5
# Well under PutLogEvents' 1 MiB and 10,000 events.
_BATCH_BYTES = 512 * 1024
_MOST_DATA = 1000  # of one PutMetricData
# On AWS, Dagster's services write from WARNING up; here their files also have what people like to see.
_BELOW_WARNING = re.compile(r" - (?:DEBUG|INFO) - |^(?:DEBUG|INFO):")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def start_awslogs(environment: Mapping[str, str], logs: Path, keep_open: Sequence[int]) -> ChildProcess:
    """Follow the files in `logs`. Stop it after the processes whose last lines it carries."""
    argv = [sys.executable, "-m", "capstone_dagster.local.awslogs", str(logs)]
    # A fake AWS Batch has a CloudWatch Logs of its own, for its containers' standard output.
    own = {name: value for name, value in environment.items() if name != "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"}
    return start(Command("awslogs stand-in", argv, logs / "awslogs.log", own), keep_open)


@dataclass
class Follower:
    """One file that a process writes its output to.

    Attributes:
        path: may be moved aside for the next process's file; what is left of the old one is read first.
    """

    path: Path
    _file: IO[bytes] | None = field(default=None, repr=False)

    def carry(self) -> bool:
        """Send the lines that are new; whether there may be more at once."""
        if self._file is None:
            with contextlib.suppress(FileNotFoundError):
                self._file = self.path.open("rb")
        if self._file is None:
            return False
        begin = self._file.tell()
        data = self._file.read(_BATCH_BYTES)
        data = data[: data.rfind(b"\n") + 1]
        try:
            if data:
                _put(data.decode(errors="replace").splitlines(), self.path.stem)
        except (BotoCoreError, ClientError) as error:
            self._file.seek(begin)
            print(f"Lines of {self.path.name} wait: {error}", file=sys.stderr)
            return False
        self._file.seek(begin + len(data))
        if not data and self._was_replaced():
            self._file.close()
            self._file = None
            return True
        return bool(data)

    def _was_replaced(self) -> bool:
        assert self._file is not None
        try:
            return os.fstat(self._file.fileno()).st_ino != self.path.stat().st_ino
        except FileNotFoundError:
            return False


def group_of(text: str, source: str) -> str | None:
    """The group that the line's container writes to on AWS; None for what a container would not write.

    The runs' workers share the code location's output here, so a line that names a run counts as a job's.

    Args:
        source: name of the process that wrote it.
    """
    fields = _object(text)
    if "component" in fields:
        of_a_run = fields.get("run_id") and fields["component"] != "intake"
        return VIDEO_ANALYSIS.name if of_a_run else INTAKE.name
    if "_aws" in fields:
        return INTAKE.name
    if not text.strip() or _BELOW_WARNING.search(_COLOURS.sub("", text)):
        return None
    return WEBSERVER.name if "webserver" in source else DAEMON.name


def metric_data(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What CloudWatch makes of a line in its embedded metric format: namespace and datum of each value."""
    fields = _object(text)
    for about in fields.get("_aws", {}).get("CloudWatchMetrics", ()):
        for names in about["Dimensions"]:
            for metric in about["Metrics"]:
                yield (
                    about["Namespace"],
                    {
                        "MetricName": metric["Name"],
                        "Unit": metric["Unit"],
                        "Value": fields[metric["Name"]],
                        "Dimensions": [{"Name": name, "Value": fields[name]} for name in names],
                        "Timestamp": fields["_aws"]["Timestamp"] / 1000,
                    },
                )


def follow(folder: Path, stop: threading.Event) -> None:
    """Send what the processes in `folder` write, until `stop`; then what is left."""
    followers: dict[Path, Follower] = {}
    while True:
        is_last = stop.wait(_POLL_S)
        for path in folder.glob("dagster-*.log"):
            follower = followers.setdefault(path, Follower(path))
            while follower.carry():
                pass
        if is_last:
            return


def _put(lines: Sequence[str], source: str) -> None:
    events: dict[str, list[Any]] = defaultdict(list)
    data: dict[str, list[Any]] = defaultdict(list)
    for line in lines:
        if (group := group_of(line, source)) is not None:
            events[group].append({"timestamp": _time_ms(line), "message": line})
        for namespace, datum in metric_data(line):
            data[namespace].append(datum)
    for group, batch in events.items():
        _put_events(group, source, sorted(batch, key=lambda event: event["timestamp"]))
    for namespace, values in data.items():
        for at in range(0, len(values), _MOST_DATA):
            _cloudwatch().put_metric_data(Namespace=namespace, MetricData=values[at : at + _MOST_DATA])


def _put_events(group: str, stream: str, events: list[Any]) -> None:
    with contextlib.suppress(_logs().exceptions.ResourceAlreadyExistsException):
        _logs().create_log_stream(logGroupName=group, logStreamName=stream)
    _logs().put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def _time_ms(line: str) -> int:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return round(datetime.fromisoformat(_object(line)["timestamp"]).timestamp() * 1000)
    return time.time_ns() // 1_000_000


def _object(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(text)
            return found if isinstance(found, dict) else {}
    return {}


@cache
def _logs() -> CloudWatchLogsClient:
    return aws_client("logs")


@cache
def _cloudwatch() -> CloudWatchClient:
    return aws_client("cloudwatch")


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    follow(Path(sys.argv[1]), stop)


if __name__ == "__main__":
    main()
