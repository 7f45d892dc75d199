"""The container's health, by the role that its first process plays: exits 0 if it is well.

A job is well while it runs: whether its run is, Dagster's monitoring finds out.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 5
_PORT = "3000"


def check(command: Sequence[str]) -> str | None:
    """What is wrong with the process that was started by `command`; None if nothing is."""
    programs = {Path(word).name for word in command}
    if "dagster-webserver" in programs:
        return _webserver(_option(command, "--port", "-p") or _PORT)
    if "dagster-daemon" in programs:
        done = subprocess.run(["dagster-daemon", "liveness-check"], capture_output=True, text=True)
        return None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-500:]
    return None


def _webserver(port: str) -> str | None:
    url = f"http://127.0.0.1:{port}/server_info"
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


def main() -> int:
    # Process 1 of the container; a command given here stands for it where processes are not set apart.
    command = sys.argv[1:] or Path("/proc/1/cmdline").read_text().split("\0")
    wrong = check(command)
    if wrong is not None:
        print(wrong)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
