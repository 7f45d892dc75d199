"""Dagster's own storage in PostgreSQL, over one bounded pool of connections a process; dagster.yaml names it.

dagster-postgres opens a connection for each statement, some forty a second on an idle stack, and waits
without limit for a server that has frozen. Here a process has one engine, however many instances it opens,
and every connection has time-outs.
"""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import click
import sqlalchemy as sa
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy.pool import QueuePool

from capstone_dagster.dagster_private import ConfigurableClassData

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
    def optimize_for_webserver(self, *_: Any, **__: Any) -> None:
        """Nothing: the pool serves the webserver as well."""


class _Runs(_Pooled, PostgresRunStorage):
    pass


class _Events(_Pooled, PostgresEventLogStorage):
    pass


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
    # The parent's sockets stay the parent's: the child neither uses nor closes them.
    os.register_at_fork(after_in_child=lambda: engine.dispose(close=False))
    return engine
