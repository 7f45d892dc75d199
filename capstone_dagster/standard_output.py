"""The process's own standard output: lines arrive whole, and a reader that stops costs lines, not time.

It writes to a duplicate of file descriptor 1: a library that redirects standard output for a while does not
redirect log lines.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time

# What a pipe takes in one piece, and without blocking once it says that it is writable (PIPE_BUF on Linux).
_PIPE_PIECE = 4096
# A slow reader gets this long; after that its lines are dropped until it reads again.
_PATIENCE_S = 0.5


class StandardOutput:
    """Writes lines to a duplicate of a file descriptor; safe to share between threads.

    Args:
        descriptor: duplicated at once, so that a later redirection does not matter.

    Attributes:
        lost: lines that could not be written.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self.lost = 0
        self._lock = threading.RLock()  # a signal handler may log while its thread is in here
        self._stuck = False
        self._unfinished = False
        self._piece = _PIPE_PIECE
        try:
            self._descriptor: int | None = os.dup(descriptor)
            if stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                self._piece = 1 << 30  # other processes append to the same file: one write is one line
        except OSError:
            self._descriptor = None  # closed, as a daemon's may be

    def write(self, line: str) -> bool:
        """Write one line and its line break; return whether all of it was taken. Never raises.

        Waits at most half a second for the reader, and not again before the reader has read something.
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
        try:
            while done < len(data):
                if not poll.poll(max(0, int(1000 * (give_up - time.monotonic())))):
                    self._stuck = True
                    return False
                done += os.write(self._descriptor, data[done : done + self._piece])
        finally:
            self._unfinished = done < len(data) and (self._unfinished or done > 0)
        self._stuck = False
        return True


_shared: StandardOutput | None = None
_sharing = threading.Lock()


def standard_output() -> StandardOutput:
    """The one of this process, made at the first call: before any step runs."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = StandardOutput()
        return _shared


def _after_fork_in_child() -> None:
    # A lock may be held by a thread that exists in the parent only.
    global _sharing
    _sharing = threading.Lock()
    if _shared is not None:
        _shared._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
