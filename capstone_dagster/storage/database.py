"""The event store's connection: engine, migrations, and PostgreSQL's errors in this room's classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from capstone_dagster.settings import ConfigurationError
from capstone_dagster.storage.errors import DatabaseUnavailable, PermissionDenied, StorageError
from capstone_dagster.storage.schema import metadata

# Chosen so that a dead server is noticed in seconds and no statement holds a run for longer than a minute.
_CONNECT_TIMEOUT_S = 5
_STATEMENT_TIMEOUT_MS = 60_000
# Any constant will do, as long as nobody else takes the same advisory lock.
_MIGRATION_LOCK = 0x6361_7073
# The first two digits of a SQLSTATE are its class. The first list passes by itself (or by somebody's doing):
# connection, transaction state (a primary that became read-only), resources, operator, system. The second is
# about the value: data, integrity, program limits.
_UNAVAILABLE = ("08", "25", "53", "57", "58")
_REFUSED = ("22", "23", "54")
_MISSING = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedColumn,
)


class SchemaMissing(StorageError):
    """The database answers, but has not the tables (or not all of them)."""

    failure_class = "configuration"


class DatabaseError(StorageError):
    """The database refused a statement: a fault in this program or in its data."""

    failure_class = "internal"


class RefusedByDatabase(DatabaseError):
    """The database answers, and will never take this value: trying again changes nothing.

    It breaks a type's range or encoding, a constraint, or a limit of PostgreSQL's.
    """


def open_engine(url: str) -> sa.Engine:
    """An engine for the event store; connects on first use.

    Raises:
        ConfigurationError: the URL is none.
    """
    try:
        return sa.create_engine(
            url,
            pool_size=4,
            max_overflow=8,
            pool_pre_ping=True,
            pool_timeout=10,
            connect_args={
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "application_name": "capstone",
                "options": f"-c statement_timeout={_STATEMENT_TIMEOUT_MS} -c timezone=UTC",
            },
        )
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise ConfigurationError(
            "CAPSTONE_DATABASE_URL is no database URL; expected "
            f"postgresql+psycopg://user:password@host:5432/capstone ({type(error).__name__})."
        ) from None


@contextmanager
def database_errors(engine: sa.Engine) -> Iterator[None]:
    """Turn SQLAlchemy's and the driver's errors into this room's classes, without any password."""
    try:
        yield
    except (DBAPIError, psycopg.Error, PoolTimeout, UnicodeEncodeError) as error:
        # COPY goes past SQLAlchemy, so the driver's own errors arrive bare there.
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
            # A primary that was demoted keeps its connections: only new ones find the one that is writable.
            engine.dispose()
        raise _in_our_words(cause, engine.url.render_as_string(hide_password=True)) from error


def _in_our_words(cause: BaseException | None, where: str) -> StorageError:
    told = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    sqlstate = (cause.sqlstate or "") if isinstance(cause, psycopg.Error) else ""
    if isinstance(cause, _MISSING):
        return SchemaMissing(
            f"The event store {where} lacks tables or columns of this version. Run `capstone migrate`."
        )
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        return PermissionDenied(f"The event store {where} forbids this user the statement: {told}. Grant it.")
    # Before OperationalError, which psycopg also calls a value that breaks a limit. Without a SQLSTATE the
    # driver refused the value by itself: a NUL, half of a surrogate pair.
    if sqlstate[:2] in _REFUSED or (
        not sqlstate and isinstance(cause, (psycopg.DataError, UnicodeEncodeError))
    ):
        return RefusedByDatabase(f"The event store {where} will never take this value: {told}.")
    if sqlstate[:2] in _UNAVAILABLE or isinstance(
        cause, (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
    ):
        trouble = "cannot do its work now" if sqlstate else "does not answer"
        return DatabaseUnavailable(
            f"The event store {where} {trouble}: {told}. Check that it runs, its security group, its disk "
            "and its connection limit; the work is tried again."
        )
    return DatabaseError(f"The event store {where} refused a statement: {told}.")


def ping(engine: sa.Engine) -> None:
    """Ask in one round trip whether the tables are there, in this version's columns, and may be written.

    Inserting no rows into each of them changes nothing, yet is refused by a server in recovery, in a
    read-only session, for a missing column and for a missing right.

    Raises:
        DatabaseUnavailable, SchemaMissing, PermissionDenied: as PostgreSQL answers.
    """
    with database_errors(engine), engine.connect() as connection:
        connection.execute(_PING)


def _no_rows(table: sa.Table) -> sa.CTE:
    columns = [column for column in table.c if column.identity is None]  # those PostgreSQL fills itself
    nothing = sa.select(*columns).where(sa.false())
    return insert(table).from_select(columns, nothing).returning(sa.literal(1)).cte(f"ping_{table.name}")


_PING = sa.select(sa.literal(1)).add_cte(*(_no_rows(table) for table in metadata.sorted_tables))


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to this version's state; safe to call at once from several processes.

    Raises:
        DatabaseUnavailable, PermissionDenied, DatabaseError: as PostgreSQL answers.
    """
    # Only here: every run's process imports this module, and none of them migrates.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    with database_errors(engine), engine.connect() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_lock(_MIGRATION_LOCK)))
        connection.commit()
        try:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
        finally:
            connection.rollback()
            connection.execute(sa.select(sa.func.pg_advisory_unlock(_MIGRATION_LOCK)))
            connection.commit()
