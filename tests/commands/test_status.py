"""`capstone status`: places in the queue and reasons for waiting, beside the event store's word."""

import csv
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.types import DaemonHeartbeat

from capstone_dagster.failures.breaker_state import BREAKER, BreakerState, Phase
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.video_status import (
    mark_failed,
    mark_queued,
    mark_running,
    mark_waiting,
    requeue,
)
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import UPLOAD, publish
from tests.support.command_line import Capstone
from tests.support.origin import REMOTE_ORIGIN

COLUMNS = {"queue_position", "queue_length", "waiting_for"}


@pytest.fixture
def database(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    url = database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    return database


@pytest.fixture
def instance(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """On PostgreSQL, whose tables `capstone status` reads without Dagster."""
    (tmp_path / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nstorage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\n"
    )
    url = database.engine.url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    with dg.DagsterInstance.get() as instance:
        alive(instance)
        yield instance


def alive(instance: dg.DagsterInstance, age_s: float = 0.0) -> None:
    heartbeat = DaemonHeartbeat(time.time() - age_s, "QUEUED_RUN_COORDINATOR", "d", [])
    instance.add_daemon_heartbeat(heartbeat)


def video(
    database: Database, instance: dg.DagsterInstance, number: int, status: dg.DagsterRunStatus, **tags: str
) -> str:
    """A video whose run is at this stage; its run."""
    database.transact(record_upload, replace(UPLOAD, upload_id=f"u{number}", video_id=f"v{number}"))
    tags = {".dagster/capstone.upload_id": f"u{number}"} | {k.replace("__", "/"): v for k, v in tags.items()}
    run_id = create_run_for_test(instance, status=status, tags=tags, remote_job_origin=REMOTE_ORIGIN).run_id
    database.transact(mark_queued, {f"u{number}": run_id})
    return run_id


def waiting(capstone: Capstone, number: int) -> tuple[Any, ...]:
    [row] = json.loads(capstone("status", f"v{number}", "--json").out)
    return tuple(row[name] for name in ("state", "queue_position", "queue_length", "waiting_for"))


def test_a_queued_video_has_its_place_and_what_is_before_it(
    capstone: Capstone, database: Database, instance: dg.DagsterInstance
) -> None:
    for number in (1, 2, 3):
        video(database, instance, number, dg.DagsterRunStatus.QUEUED)
    video(database, instance, 4, dg.DagsterRunStatus.QUEUED, dagster__priority="7")
    run_id = video(database, instance, 5, dg.DagsterRunStatus.STARTED)
    database.transact(mark_running, "u5", run_id, 0.5)

    assert waiting(capstone, 4) == ("queued", 1, 4, "1st of 4 in the queue, 1 running")
    assert waiting(capstone, 3) == ("queued", 4, 4, "4th of 4 in the queue, 1 running")
    assert waiting(capstone, 5) == ("running", None, None, None)
    assert "v2 waits: 3rd of 4 in the queue, 1 running" in capstone("status").out
    [header, *_] = csv.reader(io.StringIO(capstone("status", "--csv").out))
    assert set(header) >= COLUMNS


def test_what_follows_an_upload_whose_run_is_not_told_yet(
    capstone: Capstone, database: Database, instance: dg.DagsterInstance
) -> None:
    database.transact(record_upload, UPLOAD)
    assert waiting(capstone, 1) == ("received", None, None, "its run is being asked for")
    tags = {".dagster/capstone.upload_id": UPLOAD.upload_id}
    create_run_for_test(
        instance, status=dg.DagsterRunStatus.QUEUED, tags=tags, remote_job_origin=REMOTE_ORIGIN
    )
    assert waiting(capstone, 1) == ("received", 1, 1, "1st of 1 in the queue")


def test_a_video_that_waits_for_a_machine_says_why(
    capstone: Capstone, database: Database, instance: dg.DagsterInstance
) -> None:
    run_id = video(database, instance, 1, dg.DagsterRunStatus.STARTING)
    assert waiting(capstone, 1) == ("queued", None, None, "its worker starts")
    database.transact(mark_waiting, "u1", run_id, "AWS Batch: RUNNABLE: no GPU machine is free")
    now = waiting(capstone, 1)
    assert now == ("waiting-for-compute", None, None, "AWS Batch: RUNNABLE: no GPU machine is free")


def test_a_video_that_is_tried_again_says_so_with_its_place(
    capstone: Capstone, database: Database, instance: dg.DagsterInstance
) -> None:
    failed = video(database, instance, 1, dg.DagsterRunStatus.FAILURE)
    database.transact(mark_failed, "u1", failed, failure_class="worker-lost", message="Lost.")
    assert waiting(capstone, 1) == ("failed", None, None, None)
    again = create_run_for_test(instance, status=dg.DagsterRunStatus.QUEUED, remote_job_origin=REMOTE_ORIGIN)
    database.transact(requeue, "u1", failed, again.run_id, "It is tried again after worker-lost.")
    reason = "1st of 1 in the queue. It is tried again after worker-lost."
    assert waiting(capstone, 1) == ("queued", 1, 1, reason)


@pytest.mark.parametrize(
    ("age_s", "reason"), [(500.0, "Dagster's daemon has been silent for 5"), (10.0, "1st of 1 in the queue")]
)
def test_a_silent_daemon_is_the_reason(
    capstone: Capstone, database: Database, instance: dg.DagsterInstance, age_s: float, reason: str
) -> None:
    alive(instance, age_s)
    video(database, instance, 1, dg.DagsterRunStatus.QUEUED)
    assert str(waiting(capstone, 1)[3]).startswith(reason)


def test_a_paused_intake_says_so(
    capstone: Capstone, database: Database, instance: dg.DagsterInstance
) -> None:
    assert "stay in the queue" not in capstone("status").err
    now = time.time()
    BREAKER.write(instance, BreakerState(Phase.OPEN, since=now, cause="operator", reason="kim: new model"))

    for outcome in (capstone("status"), capstone("status", "nobody")):
        told_all = " ".join(outcome.err.split())
        assert "New uploads stay in the queue: intake is paused for operator: kim: new model" in told_all
    database.transact(record_upload, UPLOAD)
    assert waiting(capstone, 1)[3] == "intake is paused for operator: kim: new model"


def test_without_dagsters_records_the_event_stores_word_stands(
    capstone: Capstone, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(mark_queued, {"u1": "r1"})
    database.transact(mark_waiting, "u1", "r1", "AWS Batch: RUNNABLE")
    assert waiting(capstone, 1) == ("waiting-for-compute", None, None, "AWS Batch: RUNNABLE")
    publish(database)
    assert waiting(capstone, 1) == ("done", None, None, None)

    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"sqlite:///{tmp_path}/nowhere/runs.db")
    outcome = capstone("status")
    assert outcome.code == 0
    assert "Dagster's storage cannot be read" in outcome.err
    assert "v1" in outcome.out
