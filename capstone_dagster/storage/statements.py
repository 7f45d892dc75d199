"""Tells which statements the event store took long for; never with their values."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import sqlalchemy as sa

# A statement of this schema takes single milliseconds, with the way to the server and back: what takes a
# tenth of a second waits for a lock, a disk, or an index that is missing.
SLOW_S = 0.1
# A long list of columns tells no more than its beginning.
_LONGEST = 500


class SlowStatementReport(Protocol):
    """Takes a slow statement, with placeholders for its values, and how long it took."""

    def __call__(self, statement: str, elapsed_s: float) -> None: ...


class StatementWatch:
    """Times every statement of an engine, and reports those that took long.

    Args:
        slow_s: what takes less is not reported.
    """

    def __init__(self, engine: sa.Engine, report: SlowStatementReport, slow_s: float = SLOW_S) -> None:
        self._report = report
        self._slow_s = slow_s
        sa.event.listen(engine, "before_cursor_execute", self._before)
        sa.event.listen(engine, "after_cursor_execute", self._after)
        sa.event.listen(engine, "handle_error", self._failed)

    @contextmanager
    def timed(self, statement: str) -> Iterator[None]:
        """Time what goes past the engine."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._tell(statement, time.perf_counter() - started)

    def _before(self, connection: sa.Connection, *what: Any) -> None:
        connection.info[self] = time.perf_counter()

    def _after(self, connection: sa.Connection, cursor: Any, statement: str, *more: Any) -> None:
        started = connection.info.pop(self, None)
        if started is not None:
            self._tell(statement, time.perf_counter() - started)

    def _failed(self, context: sa.ExceptionContext) -> None:
        # One that was cancelled for taking too long is the slowest of all.
        if context.connection is not None and context.statement is not None:
            self._after(context.connection, None, context.statement)

    def _tell(self, statement: str, elapsed_s: float) -> None:
        if elapsed_s >= self._slow_s:
            self._report(" ".join(statement.split())[:_LONGEST], elapsed_s)
