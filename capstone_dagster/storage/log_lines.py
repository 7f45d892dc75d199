"""Stores the log lines of runs beside what the runs do: a line can neither fail nor hold up its run."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Line = TypeVar("Line")

# A pass of an hour writes some 200 lines; what an outage keeps back fits in.
_AT_MOST = 1000
_IDLE_S = 10.0
_log = logging.getLogger("capstone.storage")


class LineWriter(Generic[Line]):
    """A bounded queue of lines, and a thread that stores them while there are any.

    Args:
        store: stores one line; whatever it raises loses that line.
    """

    def __init__(self, store: Callable[[Line], None]) -> None:
        self._store = store
        self._lines: deque[Line] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._storing = False
        self._lost = 0

    def put(self, line: Line) -> None:
        """Have a line stored; it is dropped if too many wait already."""
        with self._changed:
            if len(self._lines) >= _AT_MOST:
                self._lost += 1
                return
            self._lines.append(line)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="log lines of runs", daemon=True)
                self._thread.start()

    def flush(self, limit_s: float) -> None:
        """Wait until all lines are stored or lost, so that what is stored next comes after them."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._lines or self._storing), limit_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._lines, _IDLE_S):
                    self._thread = None
                    return
                line = self._lines.popleft()
                self._storing = True
            try:
                self._store(line)
            except Exception:  # law: what only observes fails no run
                self._lost += 1
            else:
                self._report_lost()
            with self._changed:
                self._storing = False
                self._changed.notify_all()

    def _report_lost(self) -> None:
        if lost := self._lost:
            self._lost = 0
            message = f"{lost} log lines are missing in Dagster's storage, which did not answer."
            _log.warning(message, extra={"action": "log.lost", "lines": lost})
