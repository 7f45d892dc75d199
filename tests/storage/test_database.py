"""The event store's connection, on a real PostgreSQL: schema, rights, and what each refusal is called."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import make_url
from sqlalchemy.exc import TimeoutError as PoolTimeout

from capstone_dagster.storage.database import (
    Database,
    DatabaseError,
    RefusedByDatabase,
    SchemaMissing,
    storage_error,
)
from capstone_dagster.storage.errors import DatabaseUnavailable, PermissionDenied, StorageError
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.schema import metadata
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.video_status import give_up, latest, mark_failed
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import UPLOAD, count, publish


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection past the event store, as an operator has one."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        yield connection


def alter(url: str, setting: str) -> None:
    with connected(url) as connection:
        connection.execute("SET default_transaction_read_only = off")  # an operator's way in, if it is on
        connection.execute(f'ALTER DATABASE "{make_url(url).database}" {setting}')


@pytest.fixture
def plain_user(database_url: str) -> Iterator[str]:
    """The URL of a user who owns the database and may not create roles."""
    user = f"user_{uuid4().hex[:8]}"
    with connected(database_url) as connection:
        connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'secret'")
        connection.execute(f'ALTER DATABASE "{make_url(database_url).database}" OWNER TO {user}')
    yield make_url(database_url).set(username=user, password="secret").render_as_string(hide_password=False)
    with connected(database_url) as connection:
        connection.execute(f"REASSIGN OWNED BY {user} TO CURRENT_USER")
        connection.execute(f"DROP OWNED BY {user}")
        connection.execute(f"DROP ROLE {user}")


def test_migrations_make_what_the_code_expects(database: Database) -> None:
    def ours(name: str | None, kind: str, _: Mapping[str, Any]) -> bool:
        return kind != "schema" or name == "capstone"

    options = {"include_schemas": True, "include_name": ours, "compare_type": True}
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_migrating_at_once_is_safe(database_url: str) -> None:
    stores = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Database.migrate, stores))

    assert count(stores[0], "videos") == 0
    for database in stores:
        database.close()


def test_readers_read_the_views_and_nothing_else(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()  # what it takes from readers belongs to the database: a copy does not have it
    database.transact(record_upload, UPLOAD)
    publish(database)
    database.close()
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET ROLE capstone_reader")
        assert connection.execute("SELECT count(*) FROM capstone.current_events").fetchone() == (2,)
        assert connection.execute("SELECT state FROM capstone.current_status").fetchone() == ("done",)
        assert connection.execute("SELECT state FROM capstone.uploads").fetchone() == ("done",)
        assert connection.execute("SELECT width FROM capstone.published_analyses").fetchone() == (64,)
        for view in ("zone_events", "camera_zones"):
            assert connection.execute(f"SELECT count(*) FROM capstone.{view}").fetchone() == (0,)
        for forbidden in (
            "SELECT 1 FROM capstone.events",
            "DELETE FROM capstone.video_status",
            "DELETE FROM capstone.zones",
            "CREATE TEMPORARY TABLE mine ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)


def test_no_writer_waits_for_a_lock_that_readers_can_take(database_url: str) -> None:
    database, said = Database(database_url), list[str]()
    sa.event.listen(
        database.engine, "before_cursor_execute", lambda _, __, statement, *___: said.append(statement)
    )
    database.migrate()
    database.transact(record_upload, UPLOAD)
    failed = {"failure_class": "timeout", "message": "It took long.", "tried_again": True}
    assert database.transact(mark_failed, "u1", "r1", **failed)
    assert database.transact(give_up, "u1", "r1")
    publish(database)
    database.close()
    assert [each for each in said if "LOCK TABLE" in each or "FOR NO KEY UPDATE" in each]
    assert [each for each in said if "advisory" in each] == []


def test_a_reading_event_store_can_neither_write_nor_see_tables(
    database: Database, database_url: str
) -> None:
    database.transact(record_upload, UPLOAD)
    reading = Database(database_url, reader=True)

    with reading.transaction() as connection:
        assert (
            connection.execute(sa.text("SELECT key FROM capstone.current_status")).scalar_one() == UPLOAD.key
        )
    with pytest.raises(PermissionDenied):
        reading.transact(latest, UPLOAD.video_id)
    with pytest.raises(StorageError), reading.transaction() as connection:
        connection.execute(sa.text("CREATE TABLE mine ()"))
    reading.close()


def test_the_readers_role_gets_its_grants_from_a_user_who_may_not_create_roles(
    database_url: str, plain_user: str
) -> None:
    with connected(database_url) as connection:  # roles are the server's, so an earlier test may have made it
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'capstone_reader'").fetchone():
            connection.execute("CREATE ROLE capstone_reader NOLOGIN")
    database = Database(plain_user)

    database.migrate()

    with database.engine.connect() as session:
        granted = "SELECT has_table_privilege('capstone_reader', 'capstone.current_events', 'SELECT')"
        assert session.execute(sa.text(granted)).scalar_one()
    database.close()


def test_missing_tables_say_what_to_do(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(SchemaMissing, match="capstone migrate"):
        database.transact(current_events)
    database.close()


def test_no_server_is_told_without_the_password() -> None:
    database = Database("postgresql+psycopg://user:hunter2@127.0.0.1:1/capstone")
    with pytest.raises(DatabaseUnavailable, match="does not answer") as caught:
        database.transact(current_events)
    assert "hunter2" not in str(caught.value)
    assert caught.value.failure_class == "database-unavailable"


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        pytest.param("25006", DatabaseUnavailable, id="read-only, as a demoted primary is"),
        pytest.param("08006", DatabaseUnavailable, id="connection failure"),
        pytest.param("25P03", DatabaseUnavailable, id="idle in transaction"),
        pytest.param("53100", DatabaseUnavailable, id="disk full"),
        pytest.param("53300", DatabaseUnavailable, id="too many connections"),
        pytest.param("57P01", DatabaseUnavailable, id="administrator's shutdown"),
        pytest.param("57014", DatabaseUnavailable, id="statement timeout"),
        pytest.param("58030", DatabaseUnavailable, id="input/output error"),
        pytest.param("40P01", DatabaseUnavailable, id="deadlock"),
        pytest.param("22001", RefusedByDatabase, id="too long"),
        pytest.param("22P05", RefusedByDatabase, id="no such character"),
        pytest.param("23503", RefusedByDatabase, id="foreign key"),
        pytest.param("23514", RefusedByDatabase, id="check"),
        pytest.param("54000", RefusedByDatabase, id="program limit"),
        pytest.param("42601", DatabaseError, id="syntax"),
        pytest.param("XX000", DatabaseError, id="internal"),
        pytest.param("42501", PermissionDenied, id="privilege"),
        pytest.param("42P01", SchemaMissing, id="table"),
        pytest.param("42703", SchemaMissing, id="column"),
    ],
)
def test_each_sqlstate_has_its_class(sqlstate: str, expected: type[Exception]) -> None:
    error = psycopg.errors.lookup(sqlstate)("refused")

    assert type(storage_error(error, "here")) is expected
    assert type(storage_error(sa.exc.DBAPIError("SELECT 1", {}, error), "here")) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("connection refused"), DatabaseUnavailable),
        (psycopg.InterfaceError("the connection is closed"), DatabaseUnavailable),
        (PoolTimeout("QueuePool limit"), DatabaseUnavailable),
        (psycopg.DataError("text cannot contain NUL"), RefusedByDatabase),
        (psycopg.ProgrammingError("cannot adapt type"), DatabaseError),
    ],
)
def test_what_the_driver_says_by_itself_has_its_class(error: Exception, expected: type[Exception]) -> None:
    assert type(storage_error(error, "here")) is expected


@pytest.mark.parametrize(
    "upload",
    [
        pytest.param(replace(UPLOAD, key="a\0b"), id="NUL in text"),
        pytest.param(replace(UPLOAD, camera="\ud800"), id="half a character"),
        pytest.param(replace(UPLOAD, size_bytes=2**63), id="out of range"),
        # Hex digits of a generator, so that PostgreSQL's compression cannot save the index row.
        pytest.param(
            replace(UPLOAD, external_id="".join(f"{n * n * 2654435761 % 2**32:08x}" for n in range(4000))),
            id="too long for the index",
        ),
    ],
)
def test_what_the_database_will_never_take(database: Database, upload: VideoUpload) -> None:
    with pytest.raises(RefusedByDatabase) as caught:
        database.transact(record_upload, upload)

    assert caught.value.failure_class == "internal"
    assert count(database, "video_status") == 0
    database.ping()


def test_a_read_only_database_is_unavailable_and_used_again_when_writable(
    database: Database, database_url: str
) -> None:
    database.engine.dispose()
    alter(database_url, "SET default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        database.transact(record_upload, UPLOAD)
    alter(database_url, "SET default_transaction_read_only = off")

    database.transact(record_upload, UPLOAD)  # by a new connection: the old one would stay read-only

    assert count(database, "videos") == 1


def test_ping_of_a_store_that_works_changes_nothing(database: Database) -> None:
    database.ping()

    assert count(database, "videos") == count(database, "outbox") == 0


def _read_only(url: str) -> None:
    alter(url, "SET default_transaction_read_only = on")


def _one_table_less(url: str) -> None:
    with connected(url) as connection:
        connection.execute("DROP TABLE capstone.outbox")


def _one_column_less(url: str) -> None:
    with connected(url) as connection:
        connection.execute("ALTER TABLE capstone.videos DROP COLUMN codec")


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (_read_only, DatabaseUnavailable),
        (_one_table_less, SchemaMissing),
        (_one_column_less, SchemaMissing),
    ],
)
def test_ping_says_what_is_wrong(
    database: Database, database_url: str, break_it: Callable[[str], None], expected: type[Exception]
) -> None:
    break_it(database_url)
    database.engine.dispose()

    with pytest.raises(expected):
        database.ping()


def test_ping_without_tables_server_or_rights(database_url: str, database: Database) -> None:
    gone = Database("postgresql+psycopg://user:hunter2@127.0.0.1:1/capstone")
    with pytest.raises(DatabaseUnavailable):
        gone.ping()

    user = f"user_{uuid4().hex[:8]}"
    with connected(database_url) as connection:
        connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'secret'")
        connection.execute(f"GRANT USAGE ON SCHEMA capstone TO {user}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA capstone TO {user}")
    url = make_url(database_url).set(username=user, password="secret")
    reader = Database(url.render_as_string(hide_password=False))
    try:
        with pytest.raises(PermissionDenied):
            reader.ping()
    finally:
        reader.close()
        with connected(database_url) as connection:
            connection.execute(f"DROP OWNED BY {user}")
            connection.execute(f"DROP ROLE {user}")
