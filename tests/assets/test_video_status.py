"""The status of an upload at every stage of its run, also where the run itself cannot say it."""

from collections.abc import Callable, Iterator

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from capstone_dagster.runs.video_status import reconcile
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.video_status import (
    cancel_upload,
    current_status,
    mark_begun,
    mark_cancelled,
    mark_queued,
    mark_running,
    mark_settled,
    mark_waiting,
)
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import UPLOAD, dump, publish
from tests.support.origin import REMOTE_ORIGIN

Status = dg.DagsterRunStatus
Row = tuple[str, float, str | None]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(instance: dg.DagsterInstance, database: Database) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    services = Services(read_settings(database_url=url))
    reconcile(instance, services)
    services.database.close()


def row(database: Database) -> Row:
    [row] = database.transact(current_status, "v1")
    return row["state"], row["progress"], row["message"]


def queued(database: Database, run_id: str) -> None:
    database.transact(mark_queued, {"u1": run_id})


def waiting(database: Database, run_id: str) -> None:
    queued(database, run_id)
    database.transact(mark_waiting, "u1", run_id, "AWS Batch: RUNNABLE")


def running(database: Database, run_id: str) -> None:
    queued(database, run_id)
    database.transact(mark_running, "u1", run_id)
    database.transact(mark_running, "u1", run_id, 0.4)


def analyzed_again(database: Database, run_id: str) -> None:
    publish(database)
    database.transact(mark_running, "u1", run_id)


NO_EVENTS = "Its last run published no events, only what comes before them: materialize `events`."
DELETED = "Its run was deleted from Dagster's records before it was over."


@pytest.mark.parametrize(
    ("so_far", "run_status", "tags", "expected"),
    [
        (queued, Status.QUEUED, {}, ("queued", 0.0, None)),
        (queued, Status.STARTING, {}, ("queued", 0.0, None)),
        (queued, Status.STARTING, {".dagster/batch_gpu.status": "RUNNABLE"},
         ("waiting-for-compute", 0.0, "AWS Batch: RUNNABLE")),
        (waiting, Status.STARTING, {".dagster/batch_gpu.status": "STARTING"},
         ("waiting-for-compute", 0.0, "AWS Batch: STARTING")),
        (waiting, Status.STARTED, {".dagster/batch_gpu.status": "RUNNING"}, ("running", 0.0, None)),
        (queued, Status.STARTED, {}, ("running", 0.0, None)),
        (running, Status.STARTED, {}, ("running", 0.4, None)),
        (queued, Status.CANCELED, {}, ("cancelled", 0.0, None)),
        (waiting, Status.CANCELED, {}, ("cancelled", 0.0, None)),
        (running, Status.CANCELED, {}, ("cancelled", 0.4, None)),
        (running, Status.CANCELING, {}, ("running", 0.4, None)),
        (running, Status.SUCCESS, {}, ("received", 0.0, NO_EVENTS)),
        (analyzed_again, Status.SUCCESS, {}, ("done", 1.0, None)),
        (queued, None, {}, ("cancelled", 0.0, DELETED)),
        (running, None, {}, ("cancelled", 0.4, DELETED)),
    ],
)  # fmt: skip
def test_the_status_follows_the_run(
    database: Database,
    instance: dg.DagsterInstance,
    so_far: Callable[[Database, str], None],
    run_status: dg.DagsterRunStatus | None,
    tags: dict[str, str],
    expected: Row,
) -> None:
    database.transact(record_upload, UPLOAD)
    run_id = "4f0b2a34-0000-4000-8000-000000000000"
    if run_status is not None:
        run_id = create_run_for_test(
            instance, status=run_status, tags=tags, remote_job_origin=REMOTE_ORIGIN
        ).run_id
    so_far(database, run_id)

    tick(instance, database)

    assert row(database) == expected
    before = dump(database)
    tick(instance, database)
    assert dump(database) == before, "what is true is not written again"


def test_a_run_that_has_lost_its_upload_to_another_says_nothing_of_it(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    queued(database, "first")
    database.transact(mark_running, "u1", "second", 0.0)
    for change in (mark_begun, mark_settled, mark_cancelled):
        database.transact(change, "u1", "first")
    assert row(database) == ("running", 0.0, None)


def test_a_cancellation_that_is_seen_before_it_is_explained_gets_its_message(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    running(database, "r1")
    database.transact(mark_cancelled, "u1", "r1")
    assert database.transact(cancel_upload, "u1", "Cancelled by kim.")
    assert not database.transact(cancel_upload, "u1", "Cancelled by lee.")
    assert row(database)[::2] == ("cancelled", "Cancelled by kim.")
