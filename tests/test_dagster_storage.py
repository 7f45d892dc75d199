"""Dagster's storage over a pool: few connections, time-outs on each, nothing shared across a fork."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
import yaml
from dagster._core.test_utils import create_run_for_test
from dagster_postgres.utils import DagsterPostgresException
from tenacity import wait_none

from capstone_dagster import dagster_storage
from capstone_dagster.dagster_storage import limited
from capstone_dagster.failures.classes import FailureClass, classify
from tests.support.waiting import scaled, wait_for

ROOT = Path(__file__).resolve().parent.parent
Ask = Callable[[str], Any]
# An instance that has connected forks; both processes write.
FORKING = """
import os
import dagster as dg
with dg.DagsterInstance.get() as instance:
    instance.get_runs_count()
    child = os.fork()
    instance.add_dynamic_partitions("videos", [f"v{child != 0}"])
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(sorted(instance.get_dynamic_partitions("videos")))
"""


@pytest.fixture
def home(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Dagster home with the storage of the shipped dagster.yaml, on an empty database."""
    storage = yaml.safe_load((ROOT / "dagster.yaml").read_text())["storage"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
    url = sa.make_url(database_url).set(drivername="postgresql+psycopg2")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def ask(database_url: str) -> Iterator[Ask]:
    """One value from the same database, by a connection of its own."""
    plain = sa.make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:

        def ask(query: str) -> Any:
            row = connection.execute(query).fetchone()  # type: ignore[call-overload]
            return None if row is None else row[0]

        yield ask


OPEN = """SELECT count(*) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name = 'dagster'"""


def test_a_picture_is_stored_with_the_materialisation_alone(instance: dg.DagsterInstance) -> None:
    @dg.asset
    def shown() -> dg.Output[None]:
        picture = dg.MetadataValue.md("![sheet](data:image/jpeg;base64,AAAA)")
        return dg.Output(None, metadata={"sheet": picture, "note": dg.MetadataValue.md("text"), "count": 3})

    done = dg.materialize([shown], instance=instance, resources={"io_manager": dg.mem_io_manager})
    stored = {
        entry.dagster_event.event_type: entry.dagster_event
        for entry in instance.all_logs(done.run_id)
        if entry.dagster_event is not None
    }
    output = stored[dg.DagsterEventType.STEP_OUTPUT].step_output_data.metadata
    made = stored[dg.DagsterEventType.ASSET_MATERIALIZATION].step_materialization_data.materialization
    assert (set(output), set(made.metadata)) == ({"note", "count"}, {"sheet", "note", "count"})


def test_a_hundred_statements_of_two_instances_need_one_connection(
    instance: dg.DagsterInstance, home: Path, ask: Ask
) -> None:
    with dg.DagsterInstance.get() as other:
        for _ in range(50):
            instance.get_runs_count()
            other.all_instigator_state()
        assert ask(OPEN) == 1


def test_threads_share_twenty_connections_at_most(instance: dg.DagsterInstance, ask: Ask) -> None:
    most = 0

    def read(_: int) -> int:
        return instance.get_runs_count()

    with ThreadPoolExecutor(40) as threads:
        counts = [threads.submit(read, number) for number in range(400)]
        while not all(count.done() for count in counts):
            most = max(most, ask(OPEN))
    assert [count.result() for count in counts] == [0] * 400
    assert 1 <= most <= 20
    wait_for("the end of what only the peak needed", lambda: ask(OPEN) <= 5)


def test_connections_that_the_server_has_closed_are_replaced(
    instance: dg.DagsterInstance, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    instance.get_runs_count()
    ask(OPEN.replace("count(*)", "bool_and(pg_terminate_backend(pid))"))
    wait_for("the end of the backend", lambda: ask(OPEN) == 0)
    assert instance.get_runs_count() == 0
    assert not caplog.records, "nothing is retried"


def test_every_connection_has_time_outs(instance: dg.DagsterInstance) -> None:
    # The webserver would set a time-out of its own on engines of its own.
    instance.optimize_for_webserver(statement_timeout=1, pool_recycle=1, max_overflow=50)
    for connect in (
        instance.run_storage.connect,  # type: ignore[attr-defined]
        instance.event_log_storage.index_connection,  # type: ignore[attr-defined]
    ):
        with connect() as connection:
            shown = [
                connection.execute(sa.text(f"SHOW {name}")).scalar()
                for name in ("statement_timeout", "lock_timeout")
            ]
            options = connection.connection.driver_connection.get_dsn_parameters()
        assert shown == ["1min", "30s"]
        assert (options["connect_timeout"], options["tcp_user_timeout"]) == ("10", "30000")


def test_a_log_line_neither_fails_nor_holds_up_its_run_and_comes_before_what_follows_it(
    instance: dg.DagsterInstance, ask: Ask, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = create_run_for_test(instance, job_name="job")
    writes_freely = sa.make_url(database_url).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(writes_freely) as other:
        other.execute("LOCK TABLE event_logs IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        for number in range(1200):
            instance.handle_new_event(line(run, f"line {number}"))
        assert time.monotonic() - started < scaled(5)
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'event_logs'::regclass AND NOT granted"
        wait_for("the line that waits for the lock", lambda: ask(waiting))
    instance.report_engine_event("then", run)

    lines = [entry.message or entry.user_message for entry in instance.all_logs(run.run_id)]
    assert lines[:3] == ["line 0", "line 1", "line 2"]
    assert lines[-1] == "then"
    [missing] = [record for record in caplog.records if record.name == "capstone.storage"]
    assert missing.getMessage().startswith(f"{1201 - len(lines)} log lines are missing")


def line(run: dg.DagsterRun, message: str) -> dg.EventLogEntry:
    return dg.EventLogEntry(
        error_info=None,
        level=logging.INFO,
        user_message=message,
        run_id=run.run_id,
        timestamp=time.time(),
    )


def test_an_event_of_a_run_waits_out_a_short_outage(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = create_run_for_test(instance, job_name="job")
    connect, tries = sa.Engine.connect, iter(range(100))

    def out_of_order(engine: sa.Engine) -> sa.Connection:
        if next(tries) < 3:
            raise sa.exc.OperationalError("SELECT 1", None, Exception("the server is starting up"))
        return connect(engine)

    monkeypatch.setattr(dagster_storage, "_WAIT", wait_none())
    monkeypatch.setattr(sa.Engine, "connect", out_of_order)
    instance.report_engine_event("then", run)
    assert [entry.message for entry in instance.all_logs(run.run_id)] == ["then"]
    said = [record.getMessage() for record in caplog.records if record.name == "capstone.storage"]
    assert said == ["Dagster's storage does not answer, and is tried again: the server is starting up"]
    monkeypatch.setattr(dagster_storage, "_TRY_FOR_S", 0.0)
    monkeypatch.setattr(sa.Engine, "connect", lambda _: broken())
    with pytest.raises(DagsterPostgresException, match="does not answer: the server is gone") as raised:
        instance.get_runs_count()
    assert classify(raised.value) == FailureClass.DATABASE_UNAVAILABLE


def broken() -> None:
    raise sa.exc.OperationalError("SELECT 1", None, Exception("the server is gone"))


def test_what_the_url_sets_takes_precedence() -> None:
    url = sa.make_url(
        limited("postgresql+psycopg2://u:p%40@h/d?connect_timeout=3&options=-c%20search_path=x")
    )
    assert url.password == "p@"
    assert url.query["connect_timeout"] == "3"
    assert url.query["options"] == "-c search_path=x"
    assert url.query["keepalives"] == "1"


def test_a_forked_process_has_connections_of_its_own(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=scaled(60),
    )
    assert (done.returncode, done.stdout) == (0, "['vFalse', 'vTrue']\n"), done.stderr
