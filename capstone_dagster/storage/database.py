"""The event store's connection: engine, migrations, and PostgreSQL's errors in this room's classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from capstone_dagster.settings import ConfigurationError
from capstone_dagster.storage.errors import DatabaseUnavailable, PermissionDenied, StorageError

# Chosen so that a dead server is noticed in seconds and no statement holds a run for longer than a minute.
_CONNECT_TIMEOUT_S = 5
_STATEMENT_TIMEOUT_MS = 60_000
# Any constant will do, as long as nobody else takes the same advisory lock.
_MIGRATION_LOCK = 0x6361_7073
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
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except (DBAPIError, psycopg.Error, PoolTimeout) as error:
        # COPY goes past SQLAlchemy, so the driver's own errors arrive bare there.
        cause = error.orig if isinstance(error, DBAPIError) else error
        told = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        if isinstance(cause, _MISSING):
            raise SchemaMissing(
                f"The event store {where} lacks tables or columns of this version. Run `capstone migrate`."
            ) from error
        if isinstance(cause, psycopg.errors.InsufficientPrivilege):
            raise PermissionDenied(
                f"The event store {where} forbids this user the statement: {told}. Grant it."
            ) from error
        if isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)):
            raise DatabaseUnavailable(
                f"The event store {where} does not answer: {told}. Check that it runs, its security group, "
                "and its connection limit; the work is tried again."
            ) from error
        raise DatabaseError(f"The event store {where} refused a statement: {told}.") from error


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to this version's state; safe to call at once from several processes.

    Raises:
        DatabaseUnavailable, PermissionDenied, DatabaseError: as PostgreSQL answers.
    """
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
