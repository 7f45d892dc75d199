"""Which statements are reported to have been slow, and that nobody learns their values from it."""

import pytest
import sqlalchemy as sa

from capstone_dagster.storage.database import Database
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.statements import StatementWatch
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import UPLOAD, publish

Reported = list[tuple[str, float]]


def watched(database: Database, slow_s: float) -> Reported:
    reported: Reported = []
    StatementWatch(database.engine, lambda statement, s: reported.append((statement, s)), slow_s)
    return reported


def test_a_slow_statement_is_told_with_its_time_and_without_values(database: Database) -> None:
    reported = watched(database, 0.15)

    with database.engine.begin() as connection:
        connection.execute(
            sa.text("SELECT pg_sleep(:naptime),\n  :secret"), {"naptime": 0.2, "secret": "hunter2"}
        )
        connection.execute(sa.text("SELECT 1"))

    [(statement, elapsed_s)] = reported
    assert statement.startswith("SELECT pg_sleep(")
    assert "hunter2" not in statement
    assert "\n" not in statement
    assert 0.2 <= elapsed_s < 5


def test_a_statement_that_was_cancelled_is_told_too(database: Database) -> None:
    reported = watched(database, 0.15)

    with database.engine.connect() as connection:
        connection.execute(sa.text("SET statement_timeout = 200"))
        with pytest.raises(sa.exc.OperationalError):
            connection.execute(sa.text("SELECT pg_sleep(60)"))

    assert [statement for statement, _ in reported] == ["SELECT pg_sleep(60)"]


def test_copying_is_timed_although_it_goes_past_the_engine(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.engine.dispose()
    reported = watched(database, 0.0)

    publish(database)

    [copied] = [statement for statement, _ in reported if statement.startswith("COPY capstone.events (")]
    assert copied.endswith("FROM STDIN")


def test_a_server_that_is_away_is_no_slow_statement() -> None:
    database = Database("postgresql+psycopg://user:hunter2@127.0.0.1:1/capstone")
    reported = watched(database, 0.0)

    with pytest.raises(StorageError):
        database.ping()

    assert reported == []
