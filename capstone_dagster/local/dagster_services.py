"""Dagster's webserver, daemon and code server: start them, wait until they work, stop them.

Webserver and daemon share one code server over gRPC. With `python_module` in their workspace each would start
its own, and the daemon a new one every minute. Three processes as in the cloud rather than `dagster dev`, so
that each has its own log.
"""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from capstone_dagster.local.errors import CodeLocationError, LocalStackError
from capstone_dagster.local.processes import (
    LOOPBACK,
    ChildProcess,
    Command,
    free_port,
    require_free_port,
    start,
)

# One table of each of Dagster's three storages; each makes all of its own when its first is missing.
STORAGE_TABLES = ("runs", "event_logs", "instigators")
UI_PORT = 3000
UI_PORT_VARIABLE = "CAPSTONE_UI_PORT"
# About 3 s when warm; a first import of everything from a cold disk on a busy small machine takes minutes.
START_DEADLINE_S = 180.0
# Both end within 1.5 s of SIGTERM when idle; the daemon first finishes its requests.
STOP_GRACE_S = 15.0
# The webserver asks for schedules and assets while the daemon's eight sensor threads wait for the queue.
CODE_SERVER_THREADS = 20
CODE_SERVER_RESTART_S = 1.0
CODE_SERVER_SILENCE_S = 120
# In Dagster's home: the workspace that webserver and daemon are given.
SHARED_WORKSPACE = "workspace.yaml"
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
    """The running processes. A code server that ends is started again; the others are not."""

    code_server: ChildProcess
    webserver: ChildProcess
    daemon: ChildProcess
    url: str

    def check(self) -> None:
        """Raise `ProcessEndedError` if one of them ended."""
        self.code_server.check()
        self.webserver.check()
        self.daemon.check()

    def stop(self) -> None:
        """Stop all; the code server last, which the others still use."""
        for process in (self.daemon, self.webserver):
            process.begin_stop()
        for process in (self.daemon, self.webserver, self.code_server):
            process.stop()


@dataclass(frozen=True)
class CodeLocation:
    """A code location of a workspace file, to be served over gRPC."""

    name: str
    options: tuple[str, ...]
    """The code to load, as options of `dagster code-server start`."""


def require_free_ui_port(port: int) -> None:
    """Raise `PortInUseError`, with the remedy, if another process listens on `port`."""
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
    """Start the processes in the workspace file's folder and return when the code location is loaded and the
    daemon's heartbeats have arrived.

    Args:
        workspace: names one Python module, which the code server serves.
        environment: complete; DAGSTER_HOME takes the workspace that names that server.

    Raises:
        CodeLocationError: the definitions cannot be loaded; the message says why.
        ProcessEndedError, NotReadyError: one of the processes failed; the message has its last log lines.
    """
    started_at = time.time()
    running: list[ChildProcess] = []

    def run(
        name: str,
        *arguments: str,
        stop_signal: signal.Signals = signal.SIGTERM,
        restart_after_s: float | None = None,
    ) -> ChildProcess:
        command = Command(
            name=f"Dagster {name}",
            argv=[sys.executable, "-m", *arguments],
            log=logs / f"dagster-{name.replace(' ', '-')}.log",
            environment={**environment, "DAGSTER_GRPC_MAX_WORKERS": str(CODE_SERVER_THREADS)},
            cwd=workspace.parent,
            stop_signal=stop_signal,
            grace_s=STOP_GRACE_S,
            restart_after_s=restart_after_s,
        )
        running.append(start(command, keep_open))
        return running[-1]

    location, code_port = code_location(workspace), free_port()
    shared = Path(environment["DAGSTER_HOME"]) / SHARED_WORKSPACE
    shared.write_text(_grpc_workspace(location, code_port))
    place = ["--workspace", str(shared)]
    serve = ["capstone_dagster.local.code_server", "--host", LOOPBACK, "--port", str(code_port)]
    serve += ["--location-name", location.name, "--max-workers", str(CODE_SERVER_THREADS), *location.options]
    # The process with the code ends after this time without a heartbeat, which a busy machine may delay.
    serve += ["--heartbeat-ttl", str(CODE_SERVER_SILENCE_S)]
    try:
        code_server = run(
            "code server",
            *serve,
            # SIGTERM would make it wait for calls under way, up to 20 s for a look into the queue. Its warden
            # then stops the process below it, which does not wait.
            stop_signal=signal.SIGKILL,
            restart_after_s=CODE_SERVER_RESTART_S,
        )
        # A webserver that cannot connect shows the location as broken.
        code_server.wait_until(lambda: _not_listening(code_port), START_DEADLINE_S)
        webserver = run(
            "webserver", "capstone_dagster.webserver", "--host", LOOPBACK, "--port", str(port), *place
        )
        daemon = run("daemon", "dagster._daemon", "run", *place)
        services = DagsterServices(code_server, webserver, daemon, url=f"http://{LOOPBACK}:{port}")
        _wait(services, started_at, on_progress)
    except BaseException:
        for process in running:
            process.begin_stop()
        for process in running:
            process.stop()
        raise
    return services


def code_location(workspace: Path) -> CodeLocation:
    """The one Python module that a workspace file names.

    Raises:
        LocalStackError: it names something else.
    """
    options = {"module_name": "-m", "attribute": "-a", "working_directory": "-d"}
    match yaml.safe_load(workspace.read_text()):
        case {"load_from": [{"python_module": str(module)}]}:
            return CodeLocation(module, ("-m", module))
        case {"load_from": [{"python_module": {"module_name": str(module), **rest}}]} if (
            rest.keys() <= options.keys() | {"location_name"}
        ):
            named = {"module_name": module, **rest}
            words = [
                word for key, flag in options.items() if key in named for word in (flag, str(named[key]))
            ]
            return CodeLocation(str(rest.get("location_name", module)), tuple(words))
    raise LocalStackError(f"{workspace} should name one python_module, which the local stack serves.")


def _not_listening(port: int) -> str | None:
    try:
        socket.create_connection((LOOPBACK, port), timeout=5).close()
    except OSError as error:
        return f"port {port} does not answer: {error}"
    return None


def _grpc_workspace(location: CodeLocation, port: int) -> str:
    server = {"host": LOOPBACK, "port": port, "location_name": location.name}
    return yaml.safe_dump({"load_from": [{"grpc_server": server}]})


def create_storage(instance: Path, environment: Mapping[str, str]) -> None:
    """Create Dagster's tables in one process: webserver and daemon together sometimes fail to."""
    set_gpu_pool(instance, environment)


def end_lost_runs(instance: Path, environment: Mapping[str, str]) -> None:
    """Report runs that an earlier stack left unfinished as failed, before a daemon reads them."""
    _run_once(["-m", "capstone_dagster.local.lost_runs"], instance, environment)


def set_gpu_pool(instance: Path, environment: Mapping[str, str]) -> None:
    """Limit the runs on the GPU: to this machine's GPUs, or to the configured number of AWS Batch jobs."""
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
    """The webserver's status of locations and daemons, or a sentence why there is none."""
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
    """Only heartbeats newer than this start count: the previous stack's look healthy for half an hour."""
    silent = [
        each["daemonType"]
        for each in status["instance"]["daemonHealth"]["allDaemonStatuses"]
        if each["required"] and not (each["healthy"] and (each["lastHeartbeatTime"] or 0) >= started_at)
    ]
    return f"no heartbeat yet from {', '.join(silent)}" if silent else None
