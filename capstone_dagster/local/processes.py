"""Starts processes that cannot outlive this one, notices their end, stops them cleanly; finds free ports."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from capstone_dagster.local.errors import LocalStackError, NotReadyError, PortInUseError, ProcessEndedError

LOOPBACK = "127.0.0.1"
WARDEN = Path(__file__).with_name("warden.py")
# What the warden may need after the grace: its own wait for left-overs (5 s) and the SIGKILL round.
WARDEN_MARGIN_S = 10.0
# Too short to notice, too long to cost much: all waiting here is for other processes.
POLL_INTERVAL_S = 0.05
# Below the ports that the kernel gives to outgoing connections (32768 and up on Linux), so that none of
# those can take a port between its choice here and the server's start.
OWN_PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class User:
    """A system user that a process runs as."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    """One process to run: `environment` is complete (nothing is inherited), `log` takes both its streams."""

    name: str
    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(repr=False)  # holds passwords
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0
    user: User | None = None
    restart_after_s: float | None = None
    """Start the command again when it ends by itself; what it started meanwhile goes on."""


class ChildProcess:
    """A running command. `pid` is the first process's, not that of its warden (see warden.py)."""

    def __init__(self, command: Command, pid: int, warden: "subprocess.Popen[bytes]") -> None:
        self.name = command.name
        self.log = command.log
        self.pid = pid
        self._grace_s = command.grace_s
        self._warden = warden

    def __repr__(self) -> str:
        return f"ChildProcess({self.name}, pid {self.pid}, {'running' if self.running else 'ended'})"

    @property
    def running(self) -> bool:
        return self._warden.poll() is None

    def check(self) -> None:
        """Raise `ProcessEndedError` if the process ended."""
        code = self._warden.poll()
        if code is not None:
            raise ProcessEndedError(self.name, code, self.log, last_lines(self.log))

    def wait_until(self, ready: Callable[[], str | None], deadline_s: float) -> None:
        """Poll `ready` until it returns None; what it returns otherwise says what is missing."""
        give_up = time.monotonic() + deadline_s
        while (missing := ready()) is not None:
            self.check()
            if time.monotonic() > give_up:
                raise NotReadyError(self.name, deadline_s, missing, self.log, last_lines(self.log))
            time.sleep(POLL_INTERVAL_S)
        self.check()

    def wait(self) -> int:
        """Wait until the process ended by itself; its exit code, or 128 + the signal that ended it."""
        code = self._warden.wait()
        self.begin_stop()
        return code

    def begin_stop(self) -> None:
        """Ask the process to stop, without waiting, so that several can stop at the same time."""
        if self._warden.stdin is not None:
            self._warden.stdin.close()

    def stop(self) -> None:
        """Stop the process and all that it started; returns when nothing of it is left."""
        self.begin_stop()
        try:
            self._warden.wait(self._grace_s + WARDEN_MARGIN_S)
        except subprocess.TimeoutExpired:
            # Cannot happen unless the kernel holds a process (a dead network disk): end all, then say so.
            warden = psutil.Process(self._warden.pid)
            for process in [*warden.children(recursive=True), warden]:
                process.kill()
            raise LocalStackError(
                f"{self.name} did not stop in time and was killed. Its log: {self.log}."
            ) from None


def start(command: Command, keep_open: Sequence[int] = ()) -> ChildProcess:
    """Start `command`. The descriptors `keep_open` stay open until its last descendant ended.

    Raises:
        LocalStackError: it could not be executed at all.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    if command.log.exists():
        # One start is one file: the failure is on the last page, and the log does not grow for ever.
        command.log.replace(command.log.with_suffix(command.log.suffix + ".previous"))
    answer, report = os.pipe()
    options = ["--report-fd", str(report), "--stop-signal", str(int(command.stop_signal))]
    options += ["--grace", str(command.grace_s)]
    if command.restart_after_s is not None:
        options += ["--restart-after", str(command.restart_after_s)]
    if command.user is not None:
        options += ["--uid", str(command.user.uid), "--gid", str(command.user.gid)]
    with command.log.open("ab") as log:
        warden = subprocess.Popen(
            # -I -S: neither the environment nor site-packages decide what the warden is; starts in 15 ms.
            [sys.executable, "-I", "-S", str(WARDEN), *options, "--", *command.argv],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(command.environment),
            cwd=command.cwd,
            # A session of its own: Ctrl-C in the terminal reaches the stack only, which then stops each.
            start_new_session=True,
            pass_fds=(report, *keep_open),
        )
    os.close(report)
    with os.fdopen(answer) as reader:
        kind, _, value = reader.read().partition(" ")
    if kind != "pid":
        warden.wait()
        reason = value or last_lines(command.log)
        raise LocalStackError(f"{command.name} could not be started ({command.argv[0]}): {reason}")
    return ChildProcess(command, int(value), warden)


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log, or a sentence that there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join(lines[-count:]) if lines else "(the log is empty)"


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port(preferred: int | None = None) -> int:
    """A free loopback port: `preferred` if it is free, otherwise any of `OWN_PORTS`."""
    if preferred is not None and port_is_free(preferred):
        return preferred
    for port in random.sample(OWN_PORTS, 100):
        if port_is_free(port):
            return port
    raise LocalStackError(
        f"No free port on {LOOPBACK}: 100 tried between {OWN_PORTS.start} and {OWN_PORTS.stop}, all taken. "
        "Does this machine allow servers on loopback ports?"
    )


def require_free_port(port: int, wanted_by: str, remedy: str) -> None:
    """Raise `PortInUseError`, naming who listens there where that can be seen."""
    if not port_is_free(port):
        raise PortInUseError(port, wanted_by, _listener(port), remedy)


def _listener(port: int) -> str | None:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            local = connection.laddr
            if local and local.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return None
