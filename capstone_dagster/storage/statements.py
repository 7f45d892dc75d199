"""Reports statements of the event store that take long; never with their values."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import sqlalchemy as sa

# A statement of this schema takes single milliseconds, round trip included: one that takes a tenth of a
# second waits for a lock, a disk, or a missing index.
SLOW_S = 0.1
# A long list of columns says no more than its beginning.
_LONGEST = 500
# The place in a connection's `info` where it keeps its watch.
_WATCH = "capstone_statement_watch"


class SlowStatementReport(Protocol):
    """Takes a slow statement, with placeholders for its values, and how long it took."""

    def __call__(self, statement: str, elapsed_s: float) -> None: ...


@contextmanager
def timed(connection: sa.Connection, statement: str) -> Iterator[None]:
    """Time a statement that bypasses SQLAlchemy, such as COPY."""
    started = time.perf_counter()
    try:
        yield
    finally:
        watch: StatementWatch | None = connection.info.get(_WATCH)
        if watch is not None:
            watch.report(statement, time.perf_counter() - started)


class StatementWatch:
    """Times every statement of an engine, and reports those that take long.

    Args:
        slow_s: faster ones are not reported.
    """

    def __init__(self, engine: sa.Engine, report: SlowStatementReport, slow_s: float = SLOW_S) -> None:
        self._report = report
        self._slow_s = slow_s
        sa.event.listen(engine, "connect", self._connected)
        sa.event.listen(engine, "before_cursor_execute", self._before)
        sa.event.listen(engine, "after_cursor_execute", self._after)
        sa.event.listen(engine, "handle_error", self._failed)

    def report(self, statement: str, elapsed_s: float) -> None:
        """Report a statement if it was slow."""
        if elapsed_s >= self._slow_s:
            self._report(" ".join(statement.split())[:_LONGEST], elapsed_s)

    def _connected(self, connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
        record.info[_WATCH] = self

    def _before(self, connection: sa.Connection, *what: Any) -> None:
        connection.info[self] = time.perf_counter()

    def _after(self, connection: sa.Connection, cursor: Any, statement: str, *more: Any) -> None:
        started = connection.info.pop(self, None)
        if started is not None:
            self.report(statement, time.perf_counter() - started)

    def _failed(self, context: sa.ExceptionContext) -> None:
        # One that was cancelled for taking too long is the slowest of all.
        if context.connection is not None and context.statement is not None:
            self._after(context.connection, None, context.statement)
