"""A limit on statements that holds on this side of the connection.

PostgreSQL ends a statement that takes too long, and TCP ends a connection whose other side is gone. A server
that is frozen does neither: its kernel still answers keep-alives. Here a connection that has waited too long
for an answer is shut down, and the driver raises what it raises when a server closes a connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

# Above the server's own limit, statement_timeout: 60 s on both databases.
STATEMENT_LIMIT_S = 75.0
_LOOK_EVERY_S = 1.0
# What SQLAlchemy asks a driver to do that waits for an answer.
_WAITING = ("do_execute", "do_executemany", "do_execute_no_params", "do_ping", "do_commit", "do_rollback")


class _Waits:
    """What this process waits for, and a thread that ends what takes too long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[object, tuple[float, Any]] = {}
        self._thread: threading.Thread | None = None
        self._never = threading.Event()

    @contextmanager
    def limit(self, connection: Any, limit_s: float) -> Iterator[None]:
        key = object()
        with self._lock:
            self._due[key] = (time.monotonic() + limit_s, connection)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="statement limits", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._due.pop(key, None)

    def _watch(self) -> None:
        idle = 0
        while True:
            self._never.wait(_LOOK_EVERY_S)
            now = time.monotonic()
            with self._lock:
                for key, (due, connection) in list(self._due.items()):
                    if now > due:
                        del self._due[key]
                        _shut_down(connection)
                # A process that asks nothing need not wake up for it.
                idle = 0 if self._due else idle + 1
                if idle > 5:
                    self._thread = None
                    return


_waits = _Waits()


def _forget_the_parents() -> None:
    global _waits
    _waits = _Waits()


os.register_at_fork(after_in_child=_forget_the_parents)


def limit_statements(engine: sa.Engine, limit_s: float = STATEMENT_LIMIT_S) -> None:
    """End connections of the engine whose server does not answer in time."""
    for name in _WAITING:
        setattr(engine.dialect, name, _limited(getattr(engine.dialect, name), limit_s))


@contextmanager
def limited(connection: sa.Connection, limit_s: float = STATEMENT_LIMIT_S) -> Iterator[None]:
    """The same for what bypasses SQLAlchemy, such as COPY."""
    with _waits.limit(connection.connection.driver_connection, limit_s):
        yield


def _limited(ask: Callable[..., Any], limit_s: float) -> Callable[..., Any]:
    def ask_within(asked: Any, *args: Any, **kwargs: Any) -> Any:
        # A cursor names its connection; SQLAlchemy may wrap it.
        connection = getattr(asked, "connection", asked)
        with _waits.limit(getattr(connection, "driver_connection", connection), limit_s):
            return ask(asked, *args, **kwargs)

    return ask_within


def _shut_down(connection: Any) -> None:
    with (
        contextlib.suppress(Exception),  # it was closed in this moment
        socket.socket(fileno=os.dup(connection.fileno())) as shared,
    ):
        shared.shutdown(socket.SHUT_RDWR)
