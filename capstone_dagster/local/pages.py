"""The pages of `capstone browse` as a process of the local stack."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from capstone_dagster.local.processes import LOOPBACK, ChildProcess, Command, start

_START_DEADLINE_S = 60.0


def start_pages(environment: Mapping[str, str], logs: Path, keep_open: Sequence[int]) -> ChildProcess:
    """Serve the pages at CAPSTONE_BROWSE_URL, and return when they answer."""
    address = environment["CAPSTONE_BROWSE_URL"]
    port = str(urlsplit(address).port)
    argv = [sys.executable, "-m", "capstone_dagster.cli", "browse", "--host", LOOPBACK, "--port", port]
    process = start(Command("pages", argv, logs / "browse.log", environment), keep_open)

    def silent() -> str | None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(f"{address}/health", timeout=5).close()
        except (urllib.error.URLError, OSError) as error:
            return f"{address} does not answer: {error}"
        return None

    try:
        process.wait_until(silent, _START_DEADLINE_S)
    except BaseException:
        process.stop()
        raise
    return process
