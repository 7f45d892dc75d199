"""A container of the fake: the command as a session of its own, its output as log lines."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LogLine = tuple[int, str]
"""When a line was written (Unix time in ms), and the line."""

KILLED = 128 + signal.SIGKILL


class Container:
    """One attempt's process. Like ECS, it is stopped by SIGTERM and, after a grace, SIGKILL."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path | None,
        now_ms: Callable[[], int],
    ) -> None:
        self.lines: list[LogLine] = []
        self._now_ms = now_ms
        self._kill_at: float | None = None
        self._process: subprocess.Popen[str] | None = None
        self.start_error: str | None = None
        try:
            self._process = subprocess.Popen(
                list(command),
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            # What Docker says of a command that is not in the image.
            self.start_error = f"CannotStartContainerError: Error response from daemon: {error}"
            return
        self._reader = threading.Thread(target=self._read, name="container-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def exit_code(self) -> int | None:
        """The exit code as Docker reports it (128 + signal), or None while it runs."""
        if self._process is None:
            return 127
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_all()
        code = self._process.poll()
        if code is None:
            return None
        self._kill_all()  # nothing outlives a container's first process
        self._reader.join(timeout=5)
        return code if code >= 0 else 128 - code

    def stop(self, grace_s: float) -> None:
        """Ask the process to end; `exit_code` kills it when the grace is over."""
        if self._kill_at is None:
            self._signal(signal.SIGTERM)
            self._kill_at = time.monotonic() + grace_s

    def kill(self) -> None:
        """End it as the kernel or a vanished machine does, and wait until it is gone."""
        self._kill_all()
        if self._process is not None:
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _kill_all(self) -> None:
        """Also processes in groups of their own, as long as they stay in the container's session."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        while killed := [pid for pid in _running() if _session(pid) == self._process.pid]:
            for pid in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((self._now_ms(), line.rstrip("\n")))


def _running() -> list[int]:
    """Every process of the machine; none where there is no /proc."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _session(pid: int) -> int | None:
    """A living process's session; None of one that only waits to be reaped, and is killed already."""
    try:
        # The name in brackets may hold anything; then come state, parent, group, session.
        state, _, _, session, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in ("Z", "X") else int(session)
