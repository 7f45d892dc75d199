"""The stack's shipper: one process sends the telemetry of all, and feels the heartbeats of Dagster's two."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from capstone_dagster.catalog.alarms import DAEMON, WEBSERVER
from capstone_dagster.local.processes import ChildProcess, Command, start

SPOOL_FOLDER = "spool"
# What is left at the end is on this disk, and sent by the next start: no reason to wait long for it.
_DRAIN_S = 5.0


def start_shipper(
    webserver_url: str, environment: Mapping[str, str], logs: Path, keep_open: Sequence[int]
) -> ChildProcess:
    """Start it. That it ends by itself is no reason to stop anything: lines wait on disk."""
    argv = [sys.executable, "-m", "capstone_dagster.logs.shipping.shipper", "--drain", str(_DRAIN_S)]
    for service, how in ((WEBSERVER, webserver_url), (DAEMON, "daemon")):
        argv += ["--health-check", f"{service}={how}"]
    # A fake AWS Batch has a CloudWatch Logs of its own, for its containers' standard output.
    own = {name: value for name, value in environment.items() if name != "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"}
    command = Command("telemetry shipper", argv, logs / "shipper.log", own, grace_s=_DRAIN_S + 3.0)
    return start(command, keep_open)
