"""Dagster's own storage in PostgreSQL, over one bounded pool of connections a process; dagster.yaml names it.

dagster-postgres opens a connection for each statement, some forty a second on an idle stack, and waits
without limit for a server that has frozen. Here a process has one engine, however many instances it opens,
and every connection has time-outs. Log lines are stored beside the run that writes them, and what a run must
have on record waits out a short outage.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import click
import sqlalchemy as sa
from dagster import DagsterEventType, EventLogEntry, MarkdownMetadataValue
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import DagsterPostgresException, pg_url_from_config
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool
from tenacity import Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from capstone_dagster.dagster_private import ConfigurableClassData
from capstone_dagster.storage.deadlines import limit_statements
from capstone_dagster.storage.log_lines import LineWriter

# Most processes use a few at once; the daemon's threads may take 20 together.
_KEPT = 5
_AT_MOST = 20
# No connection is reused when it is older: a failover or a rotated password is noticed within this time.
_RECYCLE_S = 30
_CHECKOUT_TIMEOUT_S = 10
# Connection parameters of libpq. A URL that sets one of them, `options` included, takes precedence.
_LIMITS = {
    "application_name": "dagster",
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "options": "-c statement_timeout=60000 -c lock_timeout=30000",
}
# For a connection: three tries, some 5 s apart.
_TRY_FOR_S = 15.0
# An event of a run is worth more: without it a finished pass is done again. A fail-over takes a minute.
_TRY_FOR_EVENTS_S = 90.0
_WAIT = wait_random_exponential(multiplier=5, min=3, max=15)
_LINES_WITHIN_S = 5.0
_SAY_EVERY_S = 60.0
_PICTURE = "data:image/"

_log = logging.getLogger("capstone.storage")


class PooledPostgresStorage(DagsterPostgresStorage):
    """dagster-postgres' storage on a shared, pooled engine."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__(limited(postgres_url), should_autocreate_tables, inst_data)
        url, create = self.postgres_url, False  # the tables are there by now
        self._run_storage = _Runs(url, create)
        self._event_log_storage = _Events(url, create)
        self._schedule_storage = _Schedules(url, create)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = pooled_engine(url)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "PooledPostgresStorage":
        create = config_value.get("should_autocreate_tables", True)
        configured = {"postgres_url", "postgres_db"} & config_value.keys()
        return cls(pg_url_from_config(config_value) if configured else _url(), create, inst_data)


class _Pooled:
    _engine: sa.Engine

    @contextmanager
    def connect(self, run_id: str | None = None) -> Iterator[sa.Connection]:
        """A connection of the pool; several tries, where dagster-postgres makes five within two seconds."""
        with _connect(self._engine) as connection:
            yield connection

    _connect = connect

    def optimize_for_webserver(self, *_: Any, **__: Any) -> None:
        """Nothing: the pool serves the webserver as well."""


class _Runs(_Pooled, PostgresRunStorage):
    def handle_run_event(self, *args: Any, **kwargs: Any) -> None:
        """Follow an event of the run in its status."""
        with _patience(_TRY_FOR_EVENTS_S):
            super().handle_run_event(*args, **kwargs)


class _Events(_Pooled, PostgresEventLogStorage):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.forget_lines()
        _event_storages.add(self)

    def store_event(self, event: EventLogEntry) -> None:
        """Store what happened; a log line is stored in a moment, and before what happens next."""
        if event.dagster_event is None:
            self._lines.put(event)
            return
        self._lines.flush(_LINES_WITHIN_S)
        with _patience(_TRY_FOR_EVENTS_S):
            super().store_event(_without_doubled_pictures(event))

    def dispose(self) -> None:
        self._lines.flush(_LINES_WITHIN_S)
        super().dispose()

    def forget_lines(self) -> None:
        """Start without lines, as a forked child does: lines and thread stay its parent's."""
        self._lines = LineWriter(super().store_event)


def _without_doubled_pictures(event: EventLogEntry) -> EventLogEntry:
    """A step's output as stored: its pictures lie in the asset's materialisation, which pages show."""
    happened = event.dagster_event
    if happened is None or happened.event_type != DagsterEventType.STEP_OUTPUT:
        return event
    output = happened.step_output_data
    kept = {
        name: value
        for name, value in output.metadata.items()
        if not (isinstance(value, MarkdownMetadataValue) and _PICTURE in (value.md_str or ""))
    }
    if len(kept) == len(output.metadata):
        return event
    smaller = happened._replace(event_specific_data=output._replace(metadata=kept))
    return event._replace(dagster_event=smaller)


_event_storages: weakref.WeakSet[_Events] = weakref.WeakSet()


def _in_forked_child() -> None:
    for storage in _event_storages:
        storage.forget_lines()


os.register_at_fork(after_in_child=_in_forked_child)


class _Schedules(_Pooled, PostgresScheduleStorage):
    pass


def _url() -> str:
    """DAGSTER_POSTGRES_URL; with nothing set, the local stack's, which is started if none runs.

    Raises:
        ClickException: neither is there, as one sentence for Dagster's commands.
    """
    if "DAGSTER_POSTGRES_URL" not in os.environ:
        if (environment := os.environ.get("CAPSTONE_ENVIRONMENT", "local")) != "local":
            raise click.ClickException(
                f"DAGSTER_POSTGRES_URL is not set, and CAPSTONE_ENVIRONMENT is {environment!r}: set the "
                "address of Dagster's storage, postgresql+psycopg2://user:password@host:5432/dagster."
            )
        try:
            from capstone_dagster.local.by_habit import enter_local_stack
            from capstone_dagster.local.errors import LocalStackError
        except ModuleNotFoundError as missing:
            raise click.ClickException(
                f"DAGSTER_POSTGRES_URL is not set, and the local stack needs {missing.name}: set that "
                "variable, or `pip install 'capstone-dagster[local]'`."
            ) from None
        try:
            enter_local_stack()
        except LocalStackError as error:
            raise click.ClickException(str(error)) from error
    return os.environ["DAGSTER_POSTGRES_URL"]


def limited(postgres_url: str) -> str:
    """The URL with every time-out that it does not set itself."""
    url = sa.make_url(postgres_url)
    limits = {name: value for name, value in _LIMITS.items() if name not in url.query}
    return url.update_query_dict(limits).render_as_string(hide_password=False)


@cache
def pooled_engine(postgres_url: str) -> sa.Engine:
    """The process's engine for this URL; a forked child starts with an empty pool."""
    engine = sa.create_engine(
        postgres_url,
        isolation_level="AUTOCOMMIT",
        poolclass=QueuePool,
        pool_size=_KEPT,
        max_overflow=_AT_MOST - _KEPT,
        pool_recycle=_RECYCLE_S,
        pool_timeout=_CHECKOUT_TIMEOUT_S,
        pool_pre_ping=True,
        pool_use_lifo=True,
    )
    limit_statements(engine)
    # The parent's sockets stay the parent's: the child neither uses nor closes them.
    os.register_at_fork(after_in_child=lambda: engine.dispose(close=False))
    return engine


_patient = threading.local()
_said_at = 0.0


@contextmanager
def _patience(try_for_s: float) -> Iterator[None]:
    """Try for this long to get the connections that this thread needs meanwhile."""
    _patient.for_s = try_for_s
    try:
        yield
    finally:
        del _patient.for_s


@contextmanager
def _connect(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection.

    Raises:
        DagsterPostgresException: the server does not answer.
    """
    tries = Retrying(
        retry=retry_if_exception_type((DBAPIError, PoolTimeout)),
        wait=_WAIT,
        stop=stop_before_delay(getattr(_patient, "for_s", _TRY_FOR_S)),
        before_sleep=lambda state: _say(state.outcome.exception() if state.outcome else None),
        reraise=True,
    )
    try:
        connection = tries(engine.connect)
    except (DBAPIError, PoolTimeout) as error:
        raise DagsterPostgresException(f"Dagster's storage does not answer: {_reason(error)}") from error
    with connection:
        yield connection


def _say(error: BaseException | None) -> None:
    """Once a minute, however many threads try."""
    global _said_at
    if time.monotonic() - _said_at > _SAY_EVERY_S:
        _said_at = time.monotonic()
        message = f"Dagster's storage does not answer, and is tried again: {_reason(error)}"
        _log.warning(message, extra={"action": "dagster-storage.unavailable"})


def _reason(error: BaseException | None) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
