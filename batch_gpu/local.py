"""`compute: local`: a run is executed by a process of this machine, forked by a server that has imported all.

A tag of the run holds the process's number and start time, and the process is named after the run. Any other
process can find it by these alone.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from batch_gpu.dagster_private import (
    CheckRunHealthResult,
    ExecuteRunArgs,
    LaunchRunContext,
    RunLauncher,
    WorkerStatus,
    serialize_value,
)
from batch_gpu.endings import Ending
from batch_gpu.errors import ConfigurationError, WorkerNotStarted
from batch_gpu.fork_worker import executes, no_worker_switches, start_time

PROCESS_TAG = ".dagster/batch_gpu.process"
"""A local run's process: `<pid> <start time>`."""
# The server imports Dagster and the project first: seconds, and a minute on a busy small machine.
LAUNCH_TIMEOUT_S = 180.0
_RETRY_S = 0.05
_SOCKET_NAME = "{}.sock"
# Bytes of a Unix socket's path without its final NUL: sun_path has 108 on Linux, 104 on macOS.
_LONGEST_SOCKET_PATH = 103


class LocalLauncher(RunLauncher[DagsterInstance]):
    """Starts runs as processes of this machine, and looks after them."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._preload = tuple(preload)
        # The servers that this process has started; each ends when its standard input does.
        self._servers: list[subprocess.Popen[bytes]] = []

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run's process.

        Raises:
            BatchGpuError: it cannot be started.
        """
        run = context.dagster_run
        if run.job_code_origin is None:
            raise ConfigurationError(
                f"Run {run.run_id} has no origin in Python code, so that no other process can load its job. "
                "Launch it from a code location."
            )
        args = ExecuteRunArgs(
            job_origin=run.job_code_origin, run_id=run.run_id, instance_ref=self._instance.get_ref()
        )
        answer = self._ask(serialize_value(args))
        self._instance.add_run_tags(run.run_id, {PROCESS_TAG: f"{answer['pid']} {answer['started']}"})

    def warm_up(self) -> None:
        """Start the server, unless one listens, so that the first run does not wait for its imports."""
        with socket.socket(socket.AF_UNIX) as connection:
            if not self._connects(connection):
                self._start_server()

    def close(self) -> None:
        """Have the servers that this process has started end after their last workers."""
        for server in self._servers:
            assert server.stdin is not None
            server.stdin.close()

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run's process; True if the run is or will be canceled."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if run.status != DagsterRunStatus.CANCELING:
            self._instance.report_run_canceling(run)
        if not _signalled(run, signal.SIGTERM):
            self._instance.report_run_canceled(run, "The run was canceled; it has no process to report that.")
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's process lives."""
        process = live_process(run)
        if process is not None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(process))
        pid = run.tags.get(PROCESS_TAG, "").partition(" ")[0]
        which = f"The run's process (pid {pid})" if pid else "The run's process"
        if run.status == DagsterRunStatus.STARTED:
            self._instance.add_run_tags(run.run_id, Ending("worker-lost", True, f"{which} is gone.").tags())
        return CheckRunHealthResult(WorkerStatus.FAILED, f"{which} is gone.", run_worker_id=pid)

    def _ask(self, args: str) -> Mapping[str, Any]:
        """Have a worker forked; the server's answer.

        Raises:
            WorkerNotStarted: no server answers in time.
        """
        give_up = time.monotonic() + LAUNCH_TIMEOUT_S
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(max(1.0, give_up - time.monotonic()))
                try:
                    if self._connects(connection):
                        connection.sendall(args.encode() + b"\n")
                        if answer := connection.makefile().readline():
                            return dict(json.loads(answer))
                except OSError as error:
                    last: OSError | None = error
                else:
                    last = None  # nobody listens, or the server retired in between
            if time.monotonic() > give_up:
                raise WorkerNotStarted(
                    f"No process for the run within {LAUNCH_TIMEOUT_S:.0f} s ({last or 'the server ended'}): "
                    "the machine is overloaded, or the project cannot be imported. The log of the process "
                    "that launches runs says which."
                )
            self._start_server()
            time.sleep(_RETRY_S)

    def _connects(self, connection: socket.socket) -> bool:
        try:
            connection.connect(str(self._socket()))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def _start_server(self) -> None:
        """Start a server unless another process is about to."""
        self._servers = [server for server in self._servers if server.poll() is None]
        path = self._socket()
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with socket.socket(socket.AF_UNIX) as connection:
                if self._connects(connection):
                    return
            preload = [word for module in self._preload for word in ("--preload", module)]
            server = subprocess.Popen(
                [sys.executable, "-m", "batch_gpu.fork_server", "--socket", str(path), *preload],
                stdin=subprocess.PIPE,
                start_new_session=True,
                # macOS otherwise ends a forked process that uses Objective-C, as its network libraries do.
                env=os.environ | {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"},
            )
            self._servers.append(server)
            # It listens within a moment, before it imports: only then may another process look.
            while server.poll() is None and not _listens(path):
                time.sleep(_RETRY_S)

    def _socket(self) -> Path:
        """Where this instance's server listens."""
        instance = f"{self._instance.root_directory} {sys.executable}"
        return _folder() / _SOCKET_NAME.format(sha256(instance.encode()).hexdigest()[:16])


def launched_locally(run: DagsterRun) -> bool:
    """Whether a process of this machine was started for the run."""
    return PROCESS_TAG in run.tags


def live_process(run: DagsterRun) -> int | None:
    """The pid of the run's process, if it was started on this machine and still executes the run."""
    pid, _, started = run.tags.get(PROCESS_TAG, "").partition(" ")
    if not pid:
        return None
    if started != "None":
        alive = start_time(int(pid)) == int(started) and executes(int(pid), run.run_id)
        return int(pid) if alive else None
    try:  # no /proc: the number alone has to do
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return int(pid)


def kill(run: DagsterRun) -> bool:
    """Kill the run's process and what that has started; whether the run had one on this machine."""
    return _signalled(run, signal.SIGKILL, os.killpg)  # it leads a session of its own


def _signalled(run: DagsterRun, number: signal.Signals, send: Callable[[int, int], None] = os.kill) -> bool:
    """Send the run's process a signal; False if no process executes the run."""
    with no_worker_switches(_folder()):  # or the signal would hit the process's next run
        process = live_process(run)
        if process is None:
            return False
        with suppress(ProcessLookupError):
            send(process, number)
        return True


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"batch_gpu-{os.getuid()}"
    if len(os.fsencode(folder / _SOCKET_NAME.format("0" * 16))) > _LONGEST_SOCKET_PATH:
        folder = Path("/tmp") / folder.name
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise ConfigurationError(f"{folder} is open to other users: remove it, or set TMPDIR.")
    return folder


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True
