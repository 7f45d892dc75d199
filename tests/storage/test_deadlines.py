"""A server that is frozen answers nothing, and holds nobody for ever."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from capstone_dagster.dagster_storage import pooled_engine
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.deadlines import limit_statements, limited
from capstone_dagster.storage.errors import DatabaseUnavailable
from tests.support.waiting import scaled


@contextmanager
def frozen(backend: int) -> Iterator[None]:
    """The server's process of one connection is stopped; its kernel goes on answering."""
    os.kill(backend, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(backend, signal.SIGCONT)


def statement(connection: sa.Connection) -> None:
    connection.execute(sa.text("SELECT 1"))


def commit(connection: sa.Connection) -> None:
    connection.commit()


def copy(connection: sa.Connection) -> None:
    driver = connection.connection.driver_connection
    assert driver is not None
    with limited(connection, 1.0), driver.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as into:
        into.write_row([1])


@pytest.mark.parametrize("ask", [statement, commit, copy])
def test_a_frozen_server_is_unavailable_in_the_midst_of_a_transaction(
    database: Database, ask: Callable[[sa.Connection], None]
) -> None:
    limit_statements(database.engine, 1.0)

    def work(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE t (n int)"))
        with frozen(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()):
            ask(connection)

    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        database.transact(work)
    assert time.monotonic() - started < scaled(10)
    database.ping()


def test_a_pooled_connection_whose_server_is_frozen_is_replaced(database_url: str) -> None:
    url = sa.make_url(database_url).set(drivername="postgresql+psycopg2").render_as_string(False)
    engine = pooled_engine(url)
    limit_statements(engine, 1.0)
    with engine.connect() as connection:
        backend = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
    with frozen(backend), engine.connect() as connection:
        assert connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one() != backend
    engine.dispose()


def test_what_is_answered_in_time_is_left_alone(database: Database) -> None:
    """Statements have the limit each, not together."""
    limit_statements(database.engine, 2.0)
    with database.transaction() as connection:
        for _ in range(3):
            connection.execute(sa.text("SELECT pg_sleep(1)"))
