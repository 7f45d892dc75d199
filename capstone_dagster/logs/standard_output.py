"""This process's own standard output: lines arrive whole, and a reader that stops costs lines, not time.

Dagster redirects file descriptor 1 into a file while a step runs, and copies that file to the real one by
`tail`, which a killed worker's last lines do not always survive. A duplicate made before is not redirected.
"""

from __future__ import annotations

import os
import select
import threading
import time

# What a pipe takes in one piece, and without blocking when it says that it is writable (PIPE_BUF of Linux).
_PIECE = 4096
# A reader that has a moment's trouble is waited for so long; after that its lines are dropped until it reads.
_PATIENCE_S = 0.5


class StandardOutput:
    """Writes lines to a duplicate of a file descriptor; usable from all threads.

    Args:
        descriptor: duplicated at once, so that what it is redirected to later does not matter.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self.lost = 0
        self._lock = threading.RLock()  # a signal handler may log while its thread is in here
        self._stuck = False
        self._unfinished = False
        try:
            self._descriptor: int | None = os.dup(descriptor)
        except OSError:
            self._descriptor = None  # closed, as a daemon's may be

    def write(self, line: str) -> bool:
        """Write one line, its break added; whether it was taken whole. Never raises.

        Waits for its reader for at most half a second, and not again before it has read something.
        """
        with self._lock:
            written = False
            try:
                written = self._write(line.encode(errors="backslashreplace") + b"\n")
            except Exception:  # law: a line is never worth a failure, whatever is wrong with it
                written = False
            if not written:
                self.lost += 1
            return written

    def _write(self, data: bytes) -> bool:
        if self._descriptor is None:
            return False
        if self._unfinished:
            data = b"\n" + data
        give_up = time.monotonic() + (0.0 if self._stuck else _PATIENCE_S)
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        done = 0
        while done < len(data):
            if not poll.poll(max(0, int(1000 * (give_up - time.monotonic())))):
                self._stuck = True
                self._unfinished = self._unfinished or done > 0
                return False
            done += os.write(self._descriptor, data[done : done + _PIECE])
        self._stuck = self._unfinished = False
        return True


_shared: StandardOutput | None = None
_sharing = threading.Lock()


def standard_output() -> StandardOutput:
    """The one of this process, made when it is first asked for: before any step runs."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = StandardOutput()
        return _shared


def _after_fork_in_child() -> None:
    # A thread of the parent's that held a lock is not here.
    global _sharing
    _sharing = threading.Lock()
    if _shared is not None:
        _shared._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
