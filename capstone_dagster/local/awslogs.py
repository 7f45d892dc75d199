"""Stands in for Docker's awslogs driver and for CloudWatch's reading of embedded metrics, on one machine.

Follows the files that the stack's Dagster processes write their output to, and puts each line into the log
group that the container on AWS would write to, in the emulator. What a process has written is in its file, so
a killed worker loses no line. What the emulator does not take is sent again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError

from capstone_dagster.catalog.log_groups import DAEMON, INTAKE, VIDEO_ANALYSIS, WEBSERVER

Clients = Mapping[str, Any]

_LOG = logging.getLogger("capstone.local")
_POLL_S = 0.5
# At the end; the emulator stops next, and its clients time out later.
_LAST_LINES_S = 10.0
# Well under PutLogEvents' 1 MiB and 10,000 events, and PutMetricData's 1,000 metrics.
_BATCH_BYTES = 256 * 1024
# On AWS, Dagster's services write from WARNING up; here their files also have what people like to see.
_BELOW_WARNING = re.compile(r" - (?:DEBUG|INFO) - |^(?:DEBUG|INFO):")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def awslogs(folder: Path, clients: Clients) -> Iterator[None]:
    """Follow the files in `folder` during the block, and carry their last lines at its end.

    A thread, because a process would import boto3 once more.
    """
    stop = threading.Event()
    thread = threading.Thread(target=follow, args=(folder, stop, clients), name="awslogs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LAST_LINES_S)


def follow(folder: Path, stop: threading.Event, clients: Clients) -> None:
    """Send what the processes in `folder` write, until `stop`; then what is left.

    Args:
        clients: boto3's of `logs` and `cloudwatch`.
    """
    files: dict[Path, IO[bytes]] = {}
    while True:
        is_last = stop.wait(_POLL_S)
        for path in folder.glob("dagster-*.log"):
            try:
                file = files[path] = files.get(path) or path.open("rb")
                while _carry(file, path.stem, clients):
                    pass
                # Moved aside for the next process's file, and read to its end.
                if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                    files.pop(path).close()
            except (BotoCoreError, ClientError, OSError) as error:
                _LOG.debug(f"Lines of {path.name} wait: {error}")
        if is_last:
            return


def group_of(text: str, source: str) -> str | None:
    """The group that the line's container writes to on AWS; None for what a container would not write.

    The runs' workers share the code location's output here, so a line that names a run counts as a job's.

    Args:
        source: name of the process that wrote it.
    """
    fields = _object(text)
    if "component" in fields or "_aws" in fields:
        is_a_run_s = "run_id" in fields and fields["component"] != "intake"
        return VIDEO_ANALYSIS.name if is_a_run_s else INTAKE.name
    if not text.strip() or _BELOW_WARNING.search(_COLOURS.sub("", text)):
        return None
    return WEBSERVER.name if "webserver" in source else DAEMON.name


def metric_data(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What CloudWatch makes of a line in its embedded metric format: namespace and datum of each value."""
    fields = _object(text)
    for about in fields.get("_aws", {}).get("CloudWatchMetrics", ()):
        for names in about["Dimensions"]:
            for metric in about["Metrics"]:
                datum = {
                    "MetricName": metric["Name"],
                    "Unit": metric["Unit"],
                    "Value": fields[metric["Name"]],
                    "Dimensions": [{"Name": name, "Value": fields[name]} for name in names],
                    "Timestamp": fields["_aws"]["Timestamp"] / 1000,
                }
                yield about["Namespace"], datum


def _carry(file: IO[bytes], source: str, clients: Clients) -> bool:
    """Send the next complete lines; whether there were any. Where that fails, the next call begins there."""
    begin = file.tell()
    data = file.read(_BATCH_BYTES)
    data = data[: data.rfind(b"\n") + 1]
    file.seek(begin)
    events: dict[str, list[Any]] = defaultdict(list)
    metrics: dict[str, list[Any]] = defaultdict(list)
    for line in data.decode(errors="replace").splitlines():
        if (group := group_of(line, source)) is not None:
            events[group].append({"timestamp": _time_ms(line), "message": line})
        for namespace, datum in metric_data(line):
            metrics[namespace].append(datum)
    for group, batch in events.items():
        logs = clients["logs"]
        with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_stream(logGroupName=group, logStreamName=source)
        batch.sort(key=lambda event: event["timestamp"])
        logs.put_log_events(logGroupName=group, logStreamName=source, logEvents=batch)
    for namespace, values in metrics.items():
        clients["cloudwatch"].put_metric_data(Namespace=namespace, MetricData=values)
    file.seek(begin + len(data))
    return bool(data)


def _time_ms(line: str) -> int:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return round(datetime.fromisoformat(_object(line)["timestamp"]).timestamp() * 1000)
    return time.time_ns() // 1_000_000


def _object(text: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text) if text.startswith("{") else None
        return found if isinstance(found, dict) else {}
    return {}
