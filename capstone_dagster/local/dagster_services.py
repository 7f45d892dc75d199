"""Dagster's webserver and daemon as two processes: start them, wait until they work, stop them.

Two processes as in the cloud rather than `dagster dev`: measured with the same definitions, 3.0 s instead
of 5.0 s until ready and 470 MB instead of 540 MB in 4 processes instead of 5, a log for each; and
`dagster dev` would load a `.env` over exported variables.
"""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstone_dagster.local.errors import CodeLocationError, LocalStackError
from capstone_dagster.local.processes import LOOPBACK, ChildProcess, Command, require_free_port, start

# One table of each of Dagster's three storages; each makes all of its own when its first is missing.
STORAGE_TABLES = ("runs", "event_logs", "instigators")
UI_PORT = 3000
UI_PORT_VARIABLE = "CAPSTONE_UI_PORT"
# About 3 s when warm; a first import of everything from a cold disk on a busy small machine takes minutes.
START_DEADLINE_S = 180.0
# Both answer SIGTERM within 1.5 s when idle; the daemon first finishes the requests it is in.
STOP_GRACE_S = 15.0
STATUS_QUERY = """
query LocalStackStatus {
  workspaceOrError {
    __typename
    ... on PythonError { message }
    ... on Workspace {
      locationEntries {
        name
        loadStatus
        locationOrLoadError { __typename ... on PythonError { message stack cause { message stack } } }
      }
    }
  }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } } }
}
"""


@dataclass(frozen=True)
class DagsterServices:
    """The running webserver and daemon."""

    webserver: ChildProcess
    daemon: ChildProcess
    url: str

    def check(self) -> None:
        """Raise `ProcessEndedError` if one of the two ended."""
        self.webserver.check()
        self.daemon.check()

    def stop(self) -> None:
        for process in (self.daemon, self.webserver):
            process.begin_stop()
        for process in (self.daemon, self.webserver):
            process.stop()


def require_free_ui_port(port: int) -> None:
    """Raise `PortInUseError`, with the way out, if somebody else listens on `port`."""
    remedy = f"Stop that process, or choose another port: `{UI_PORT_VARIABLE}={port + 1} make dev`."
    require_free_port(port, "Dagster UI", remedy)


def start_dagster(
    workspace: Path,
    environment: Mapping[str, str],
    logs: Path,
    port: int,
    keep_open: Sequence[int] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> DagsterServices:
    """Start both processes in the workspace file's folder and return when every code location is loaded and
    the daemon's heartbeats have arrived.

    Raises:
        CodeLocationError: the definitions cannot be loaded; the message says why.
        ProcessEndedError, NotReadyError: one of the processes failed; the message has its last log lines.
    """
    started_at = time.time()
    running: list[ChildProcess] = []

    def run(name: str, module: str, *arguments: str) -> ChildProcess:
        command = Command(
            name=f"Dagster {name}",
            argv=[sys.executable, "-m", module, *arguments, "--workspace", str(workspace)],
            log=logs / f"dagster-{name}.log",
            environment=environment,
            cwd=workspace.parent,
            stop_signal=signal.SIGTERM,
            grace_s=STOP_GRACE_S,
        )
        running.append(start(command, keep_open))
        return running[-1]

    try:
        webserver = run("webserver", "dagster_webserver", "--host", LOOPBACK, "--port", str(port))
        daemon = run("daemon", "dagster._daemon", "run")
        services = DagsterServices(webserver, daemon, url=f"http://{LOOPBACK}:{port}")
        _wait(services, started_at, on_progress)
    except BaseException:
        for process in running:
            process.begin_stop()
        for process in running:
            process.stop()
        raise
    return services


def create_storage(instance: Path, environment: Mapping[str, str]) -> None:
    """Let one process create Dagster's tables: webserver and daemon doing so at once fail now and then."""
    _run_once(["-c", "import dagster; dagster.DagsterInstance.get()"], instance, environment)


def end_lost_runs(instance: Path, environment: Mapping[str, str]) -> None:
    """Report the runs that an earlier stack left unfinished as failed, before a daemon looks at them."""
    _run_once(["-m", "capstone_dagster.local.lost_runs"], instance, environment)


def set_gpu_pool(instance: Path, environment: Mapping[str, str]) -> None:
    """Bound the runs on the GPU: by the number of this machine's, or by what AWS Batch is to be asked for."""
    _run_once(["-m", "batch_gpu.pool"], instance, environment)


def _run_once(arguments: Sequence[str], instance: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        last = "\n".join(done.stderr.splitlines()[-10:])
        raise LocalStackError(f"Dagster could not open its storage as {instance} says:\n{last}")


def _wait(services: DagsterServices, started_at: float, on_progress: Callable[[str], None]) -> None:
    def locations_missing() -> str | None:
        services.daemon.check()
        status = _status(services.url)
        return status if isinstance(status, str) else _unloaded_locations(status, services.webserver.log)

    def heartbeats_missing() -> str | None:
        services.webserver.check()
        status = _status(services.url)
        return status if isinstance(status, str) else _silent_daemons(status, started_at)

    on_progress("Dagster: loading the definitions")
    services.webserver.wait_until(locations_missing, START_DEADLINE_S)
    on_progress("Dagster: waiting for the daemon's heartbeat")
    services.daemon.wait_until(heartbeats_missing, START_DEADLINE_S)


def _status(url: str) -> dict[str, Any] | str:
    """What the webserver says about locations and daemons, or the sentence why it says nothing."""
    request = urllib.request.Request(
        f"{url}/graphql",
        data=json.dumps({"query": STATUS_QUERY}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            body = json.load(answer)
    except (urllib.error.URLError, OSError) as error:
        return f"{url} does not answer: {error}"
    status: dict[str, Any] | None = body.get("data")
    return status if status is not None else f"{url} refuses the status query: {body.get('errors')}"


def _unloaded_locations(status: dict[str, Any], log: Path) -> str | None:
    workspace = status["workspaceOrError"]
    if workspace["__typename"] != "Workspace":
        raise CodeLocationError("workspace", workspace["message"], log)
    entries = workspace["locationEntries"]
    for entry in entries:
        result = entry["locationOrLoadError"]
        if result is not None and result["__typename"] == "PythonError":
            raise CodeLocationError(entry["name"], _reason(result), log)
    loading = [entry["name"] for entry in entries if entry["loadStatus"] != "LOADED"]
    if loading or not entries:
        return f"still loading: {', '.join(loading) or 'the workspace'}"
    return None


def _reason(error: dict[str, Any]) -> str:
    """Dagster's message, its cause, and the last frames: where in the user's code it happened."""
    cause = error.get("cause") or {}
    frames = "".join((cause.get("stack") or error.get("stack") or [])[-3:])
    parts = (error["message"], cause.get("message") or "", frames)
    return "\n".join(part.strip() for part in parts if part.strip())


def _silent_daemons(status: dict[str, Any], started_at: float) -> str | None:
    """Only heartbeats newer than this start count: those of the last one look healthy for half an hour."""
    silent = [
        each["daemonType"]
        for each in status["instance"]["daemonHealth"]["allDaemonStatuses"]
        if each["required"] and not (each["healthy"] and (each["lastHeartbeatTime"] or 0) >= started_at)
    ]
    return f"no heartbeat yet from {', '.join(silent)}" if silent else None
