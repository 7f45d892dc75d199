"""The container's health, by the role that its first process plays: exits 0 if it is well.

    python healthcheck.py [--heartbeat=SERVICE] [COMMAND…]

A job is well while it runs: whether its run is, Dagster's monitoring finds out. With `--heartbeat`, each
success is also a value of the metric Heartbeat: a process that sent it of itself would go on while it hangs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 5
_PORT, _BROWSE_PORT = "3000", "3080"


def check(command: Sequence[str]) -> str | None:
    """What is wrong with the process that was started by `command`; None if nothing is."""
    programs = {Path(word).name for word in command}
    if "capstone-webserver" in programs:
        return _answers(_option(command, "--port", "-p") or _PORT, "server_info")
    if "browse" in programs:
        return _answers(_option(command, "--port") or _BROWSE_PORT, "health")
    if "dagster-daemon" in programs:
        done = subprocess.run(["dagster-daemon", "liveness-check"], capture_output=True, text=True)
        return None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-500:]
    return None


def _answers(port: str, page: str) -> str | None:
    url = f"http://127.0.0.1:{port}/{page}"
    # A proxy that the environment names is for other hosts.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=_TIMEOUT_S).close()
    except OSError as error:
        return f"{url} does not answer: {error}"
    return None


def _option(command: Sequence[str], *names: str) -> str | None:
    for at, word in enumerate(command):
        if word in names:
            return next(iter(command[at + 1 :]), None)
        name, equals, value = word.partition("=")
        if equals and name in names:
            return value
    return None


def beat(service: str) -> None:
    """Count a heartbeat. A CloudWatch that cannot be reached makes no container unwell."""
    with contextlib.suppress(Exception):
        import boto3
        from botocore.config import Config

        once = Config(connect_timeout=3, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": 1})
        environment = {"Name": "Environment", "Value": os.environ["CAPSTONE_ENVIRONMENT"]}
        boto3.client("cloudwatch", config=once).put_metric_data(
            Namespace="Capstone",
            MetricData=[
                {"MetricName": "Heartbeat", "Unit": "Count", "Value": 1, "Dimensions": dimensions}
                for dimensions in ([environment], [environment, {"Name": "Service", "Value": service}])
            ],
        )


def main() -> int:
    service = _option(sys.argv[1:], "--heartbeat")
    given = [word for word in sys.argv[1:] if not word.startswith("--heartbeat=")]
    # Process 1 of the container; a command given here stands for it where processes are not set apart.
    command = given or Path("/proc/1/cmdline").read_text().split("\0")
    wrong = check(command)
    if wrong is not None:
        print(wrong)
        return 1
    if service is not None:
        beat(service)
    return 0


if __name__ == "__main__":
    sys.exit(main())
