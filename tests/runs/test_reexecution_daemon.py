"""A database cut on the local stack, with Dagster's daemon: nothing is analysed twice, and nobody acts."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from batch_gpu.compute import compute_class
from capstone_dagster.failures.breaker_state import BREAKER
from capstone_dagster.local.aws import client
from capstone_dagster.local.postgres import EVENT_DATABASE, PostgresServer
from capstone_dagster.local.stack import LocalStack, local_stack
from capstone_dagster.run_tags import PROBE_TAG
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.video_status import current_status
from tests.support.waiting import wait_for

pytestmark = pytest.mark.live
# Half a minute on an idle machine.
DEADLINE_S = 180.0


def migrate(stack: LocalStack) -> None:
    Database(stack.environment["CAPSTONE_DATABASE_URL"]).migrate()


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_cache: Path) -> Iterator[LocalStack]:
    """The stack as `capstone dev` starts it, which pauses after one failure."""
    monkeypatch.setenv("CAPSTONE_PAUSE_AFTER_FAILURES", "1")
    monkeypatch.setenv("CAPSTONE_SAMPLE_FPS", "1")
    with (
        local_stack(tmp_path / "state", webserver_port=None, before_dagster=migrate) as stack,
        pytest.MonkeyPatch.context() as joined,
    ):
        for name, value in stack.environment.items():
            joined.setenv(name, value)
        yield stack


def take_no_writes(postgres: PostgresServer, state: str) -> None:
    """What a failover looks like to those who write: the event store alone, not Dagster's storage."""
    admin = postgres.url("postgres", "psycopg").replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {EVENT_DATABASE} SET default_transaction_read_only = {state}")
        # Settings of a database hold for new connections.
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [EVENT_DATABASE]
        )


@pytest.mark.timeout(600)
def test_a_cut_database_costs_no_second_gpu_pass_and_nobody_has_to_act(stack: LocalStack, clip: Path) -> None:
    database = Database(stack.environment["CAPSTONE_DATABASE_URL"])
    s3 = client("s3", stack.aws.endpoint_url)
    s3.upload_file(str(clip), stack.environment["CAPSTONE_RAW_BUCKET"], "gate/a.mp4")

    def status() -> Mapping[str, Any]:
        return next(iter(database.transact(current_status)), {})

    with dg.DagsterInstance.get() as instance:
        wait_for("the upload's run", instance.get_runs, DEADLINE_S)
        take_no_writes(stack.postgres, "on")
        [failed] = wait_for(
            "its failure",
            lambda: instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])),
            DEADLINE_S,
        )
        wait_for("the pause", lambda: BREAKER.read(instance).paused, DEADLINE_S)
        assert BREAKER.read(instance).cause == "database-unavailable"
        wait_for("the database to be missed", lambda: BREAKER.read(instance).unreachable, DEADLINE_S)

        take_no_writes(stack.postgres, "off")
        mended = time.monotonic()
        wait_for("its events", lambda: status().get("state") == "done", DEADLINE_S)
        took_s = time.monotonic() - mended

        again = instance.get_run_by_id(status()["run_id"])
        assert again is not None
        assert again.parent_run_id == failed.run_id
        left = set(again.step_keys_to_execute or ())
        assert "events.persist_events" in left
        assert not {"video_analysis.analyze_video", "events.derive_events"} & left
        assert again.tags[PROBE_TAG] == "true"
        assert again.remote_job_origin == failed.remote_job_origin
        plan = instance.get_execution_plan_snapshot(str(again.execution_plan_snapshot_id))
        steps = {step.key: step.tags or {} for step in plan.steps}
        assert compute_class(steps, again.step_keys_to_execute, again.tags) == "cpu"
        assert compute_class(steps, None, failed.tags) == "gpu"
        started = [
            event.dagster_event.step_key
            for run in instance.get_runs()
            for event in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
            if event.dagster_event is not None
        ]
        assert started.count("video_analysis.analyze_video") == 1
        wait_for("intake to resume", lambda: not BREAKER.read(instance).paused, DEADLINE_S)
        assert len(database.transact(current_events)) > 0
    print(f"database back → events published: {took_s:.1f} s")
