"""The embedded PostgreSQL is real, durable, reachable by both drivers, and survives being killed."""

import os
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import sqlalchemy

from capstone_dagster.local.errors import LocalStackError, ProcessEndedError
from capstone_dagster.local.postgres import DAGSTER_DATABASE, EVENT_DATABASE, PostgresServer, postgres_server
from tests.support.waiting import wait_for


def ask(
    server: PostgresServer, statement: str, database: str = EVENT_DATABASE, driver: str = "psycopg"
) -> object:
    engine = sqlalchemy.create_engine(server.url(database, driver), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        result = connection.execute(sqlalchemy.text(statement))
        return result.scalar() if result.returns_rows else None


def test_both_databases_answer_both_drivers_from_a_folder_deeper_than_a_socket_path(tmp_path: Path) -> None:
    data = tmp_path / ("deep" * 30) / "postgres"
    data.parent.mkdir(mode=0o700)
    with postgres_server(data, tmp_path / "postgres.log") as server:
        for database in (DAGSTER_DATABASE, EVENT_DATABASE):
            for driver in ("psycopg", "psycopg2"):
                assert ask(server, "SELECT current_database()", database, driver) == database
        assert ask(server, "SHOW listen_addresses") == "127.0.0.1"
        assert ask(server, "SHOW timezone") == "UTC"
    # PostgreSQL may run as another user than its owner (root): its folder is not opened for that.
    assert data.parent.stat().st_mode & 0o777 == 0o700


def test_a_connection_without_the_password_is_refused(tmp_path: Path) -> None:
    with postgres_server(tmp_path / "postgres", tmp_path / "postgres.log") as server:
        url = sqlalchemy.make_url(server.url(EVENT_DATABASE, "psycopg")).set(password="guess")
        with pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication failed"):
            sqlalchemy.create_engine(url).connect()
        assert server.password not in repr(server)


def test_rows_survive_a_restart_and_a_kill(tmp_path: Path) -> None:
    data, log = tmp_path / "postgres", tmp_path / "postgres.log"
    with postgres_server(data, log) as server:
        ask(server, "CREATE TABLE kept (n int)")
        ask(server, "INSERT INTO kept VALUES (1)")
    with postgres_server(data, log) as server:
        ask(server, "INSERT INTO kept VALUES (2)")
        psutil.Process(server.process.pid).kill()
        wait_for("the server's end", lambda: not server.process.running)
        with pytest.raises(ProcessEndedError, match=r"by signal 9.*postgres\.log"):
            server.process.check()
    assert (data / "postmaster.pid").exists()
    with postgres_server(data, log) as server:
        assert ask(server, "SELECT sum(n) FROM kept") == 3


def test_a_pid_file_whose_number_another_process_now_has_is_no_server(tmp_path: Path) -> None:
    data, log = tmp_path / "postgres", tmp_path / "postgres.log"
    with postgres_server(data, log):
        pass
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n")
    with postgres_server(data, log) as server:
        assert ask(server, "SELECT 1") == 1


def test_a_server_that_was_left_running_is_stopped_and_replaced(tmp_path: Path) -> None:
    data, log = tmp_path / "postgres", tmp_path / "postgres.log"
    with postgres_server(data, log) as left_over, postgres_server(data, tmp_path / "new.log") as server:
        assert ask(server, "SELECT 1") == 1
        assert not psutil.pid_exists(left_over.process.pid)


def test_data_of_a_version_that_is_not_installed_is_refused_by_name(tmp_path: Path) -> None:
    data = tmp_path / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("9\n")
    with (
        pytest.raises(LocalStackError, match="written by PostgreSQL 9"),
        postgres_server(data, tmp_path / "log"),
    ):
        pass


def test_an_initialisation_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres.unfinished").mkdir()
    (tmp_path / "postgres.unfinished" / "PG_VERSION").write_text("18\n")
    with postgres_server(tmp_path / "postgres", tmp_path / "log") as server:
        assert ask(server, "SELECT 1") == 1
        assert server.process.running
