"""The event store: its connections and transactions, and PostgreSQL's errors as this room's classes.

Each table has a module (`videos`, `video_status`, `analyses`, `events`, `outbox`, `erasures`) of plain
functions that take the connection of a transaction. One call in a transaction of its own:

    database.transact(latest_upload, video_id)

Several calls that must hold together:

    with database.transaction() as connection:
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from capstone_dagster.settings import ConfigurationError
from capstone_dagster.storage.deadlines import limit_statements
from capstone_dagster.storage.errors import DatabaseUnavailable, PermissionDenied, StorageError
from capstone_dagster.storage.schema import metadata
from capstone_dagster.storage.statements import SlowStatementReport, StatementWatch

# Connection parameters of libpq, and of a session. A server that is gone is noticed within half a minute, and
# no statement holds a run for longer than one; a worker that is frozen in a transaction loses its locks.
_CONNECTION: dict[str, str | int] = {
    "application_name": "capstone",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_AS_WORKER = "-c statement_timeout=60000 -c lock_timeout=30000 -c idle_in_transaction_session_timeout=60000"
# No connection is reused when it is older: a failover or a rotated password is noticed within this time.
_RECYCLE_S = 30
# People who look wait ten seconds, not a minute.
_AS_READER = "-c role=capstone_reader -c default_transaction_read_only=on -c statement_timeout=10000"
# Alembic's table, locked while migrating. Not an advisory lock: consumers may take those, and hold this up.
_VERSIONS = "public.capstone_alembic_version"
_MAKE_VERSIONS = f"""
CREATE TABLE IF NOT EXISTS {_VERSIONS} (
    version_num varchar(32) CONSTRAINT capstone_alembic_version_pkc PRIMARY KEY
)
"""
# The first two digits of a SQLSTATE are its class. The first list is transient: connection, transaction state
# (a primary that became read-only), resources, operator, system. The second is about the value: data,
# integrity, program limits.
_UNAVAILABLE = ("08", "25", "53", "57", "58")
_REFUSED = ("22", "23", "54")
_MISSING = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedColumn,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class SchemaMissing(StorageError):
    """The database answers, but lacks tables or columns."""

    failure_class = "configuration"


class DatabaseError(StorageError):
    """The database refused a statement: a fault in this program or in its data."""

    failure_class = "internal"


class RefusedByDatabase(DatabaseError):
    """The database answers, and will never take this value: trying again changes nothing.

    It breaks a type's range or encoding, a constraint, or a limit of PostgreSQL's.
    """


class Database:
    """The event store in PostgreSQL; connects on first use.

    Each method raises `DatabaseUnavailable`, `SchemaMissing`, `PermissionDenied`, `RefusedByDatabase` or
    `DatabaseError`.

    Args:
        slow: called with each statement that took long.
        unavailable: called each time that the database does not answer.
        reader: work as the role `capstone_reader`, which may read the views and nothing else; the URL's user
            is a member of it.

    Raises:
        ConfigurationError: the URL is not a database URL.
    """

    def __init__(
        self,
        url: str,
        slow: SlowStatementReport | None = None,
        unavailable: Callable[[DatabaseUnavailable], None] | None = None,
        *,
        reader: bool = False,
    ) -> None:
        self.engine = _open_engine(url, _AS_READER if reader else _AS_WORKER)
        self._unavailable = unavailable
        if slow is not None:
            StatementWatch(self.engine, slow)

    @contextmanager
    def transaction(self, limit_s: int | None = None) -> Iterator[sa.Connection]:
        """A connection whose statements take effect together at the end, or not at all.

        Args:
            limit_s: how long each statement may take, waiting for locks included; without it, a minute.
        """
        with self._errors(), self.engine.begin() as connection:
            if limit_s is not None:
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{limit_s}s'")
            yield connection

    def transact(
        self, work: Callable[Concatenate[sa.Connection, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """Call a function of this room's tables in a transaction of its own."""
        with self.transaction() as connection:
            return work(connection, *args, **kwargs)

    def ping(self) -> None:
        """Check in one round trip that the tables have this version's columns and may be written.

        Inserting no rows into each of them changes nothing, yet is refused by a server in recovery, in a
        read-only session, for a missing column and for a missing right.

        Raises:
            DatabaseUnavailable: it does not answer, is read-only, or is a standby.
            SchemaMissing: it lacks tables, or columns of this version.
            PermissionDenied: this user may not write them.
        """
        with self._errors(), self.engine.connect() as connection:
            connection.execute(_PING)

    def migrate(self) -> None:
        """Bring the schema to this version's state; safe to call at once from several processes."""
        # Only here: every run's process imports this module, and none of them migrates.
        from alembic import command
        from alembic.config import Config

        config = Config()
        migrations = str(Path(__file__).with_name("migrations"))
        config.set_main_option("script_location", migrations.replace("%", "%%"))
        with self._errors(), self.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # another process may take its time
            try:
                with connection.begin_nested():
                    connection.exec_driver_sql(_MAKE_VERSIONS)
            except (sa.exc.IntegrityError, sa.exc.ProgrammingError) as error:
                # Of several processes that make the table at once, PostgreSQL refuses all but the first.
                if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                    raise
            connection.exec_driver_sql(f"LOCK TABLE {_VERSIONS} IN SHARE ROW EXCLUSIVE MODE")
            connection.exec_driver_sql("SET LOCAL lock_timeout TO DEFAULT")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Close pooled connections."""
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise SQLAlchemy's and the driver's errors as this room's classes, without any password."""
        try:
            yield
        except (DBAPIError, psycopg.Error, PoolTimeout, UnicodeEncodeError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
                # A primary that was demoted keeps its connections: only new ones find the writable server.
                self.engine.dispose()
            named = storage_error(error, self.engine.url.render_as_string(hide_password=True))
            if self._unavailable is not None and isinstance(named, DatabaseUnavailable):
                self._unavailable(named)
            raise named from error


def _open_engine(url: str, options: str) -> sa.Engine:
    try:
        # What the URL sets takes precedence.
        set_there = sa.make_url(url).query.keys()
        engine = sa.create_engine(
            url,
            pool_size=4,
            max_overflow=8,
            pool_pre_ping=True,
            pool_recycle=_RECYCLE_S,
            pool_timeout=10,
            connect_args={
                "options": f"{options} -c timezone=UTC",
                **{name: value for name, value in _CONNECTION.items() if name not in set_there},
            },
        )
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise ConfigurationError(
            "CAPSTONE_DATABASE_URL is no database URL; expected "
            f"postgresql+psycopg://user:password@host:5432/capstone ({type(error).__name__})."
        ) from None
    limit_statements(engine)
    return engine


def storage_error(error: BaseException, where: str) -> StorageError:
    """SQLAlchemy's or the driver's error as this room's class, with what to do.

    Args:
        where: the database's URL, without its password.
    """
    # COPY bypasses SQLAlchemy, so the driver's own errors arrive bare there.
    cause = error.orig if isinstance(error, DBAPIError) else error
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    sqlstate = (cause.sqlstate or "") if isinstance(cause, psycopg.Error) else ""
    if isinstance(cause, _MISSING):
        return SchemaMissing(
            f"The event store {where} lacks tables or columns of this version. Run `capstone migrate`."
        )
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        return PermissionDenied(
            f"The event store {where} forbids this user the statement: {reason}. Grant it."
        )
    # Before OperationalError, which psycopg also raises for a value that breaks a limit. Without a SQLSTATE
    # the driver refused the value itself: a NUL, half of a surrogate pair.
    if sqlstate[:2] in _REFUSED or (
        not sqlstate and isinstance(cause, (psycopg.DataError, UnicodeEncodeError))
    ):
        return RefusedByDatabase(f"The event store {where} will never take this value: {reason}.")
    if sqlstate[:2] in _UNAVAILABLE or isinstance(
        cause, (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
    ):
        trouble = "cannot do its work now" if sqlstate else "does not answer"
        return DatabaseUnavailable(
            f"The event store {where} {trouble}: {reason}. Check that it runs, its security group, its disk "
            "and its connection limit; the work is retried."
        )
    return DatabaseError(f"The event store {where} refused a statement: {reason}.")


def _no_rows(table: sa.Table) -> sa.CTE:
    columns = [column for column in table.c if column.identity is None]  # those PostgreSQL fills itself
    nothing = sa.select(*columns).where(sa.false())
    return insert(table).from_select(columns, nothing).returning(sa.literal(1)).cte(f"ping_{table.name}")


_PING = sa.select(sa.literal(1)).add_cte(*(_no_rows(table) for table in metadata.sorted_tables))
