"""The event store's promises, on a real PostgreSQL: one effect, whole or not at all, newest is current."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from capstone_dagster.storage.analyses import analyses_of, publish_analysis
from capstone_dagster.storage.database import Database, DatabaseError
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.video_status import (
    UploadCancelled,
    cancel_upload,
    current_status,
    is_done_by,
    mark_cancelled,
    mark_failed,
    mark_queued,
    mark_running,
    mark_superseded,
    requeue,
    unfinished_runs,
)
from capstone_dagster.storage.videos import latest_upload, record_upload
from tests.storage.samples import (
    ANALYSIS,
    FACTS,
    NOON,
    ROWS,
    UPLOAD,
    count,
    dump,
    event_row,
    notices,
    publish,
)


def test_publishing_twice_changes_nothing(database: Database) -> None:
    database.transact(record_upload, UPLOAD)

    first = publish(database)
    again = publish(database, run_id="r2")

    assert (first.inserted, first.current) == (True, True)
    assert (again.inserted, again.current, again.published_at) == (False, True, first.published_at)
    assert (first.first, again.first) == (True, False)
    assert count(database, "analyses") == 1
    assert [row["event_id"] for row in database.transact(current_events, "v1")] == ["e1", "e2"]
    assert database.transact(current_events)[0]["best_box"] == [0.1, 0.2, 0.3, 0.4]


def test_publishing_at_once_has_one_effect(database: Database) -> None:
    database.transact(record_upload, UPLOAD)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: publish(database), range(8)))

    assert sum(publication.inserted for publication in done) == 1
    assert count(database, "events") == 2


def test_a_broken_row_publishes_nothing(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    bad = {**event_row("e2"), "best_ms": 99_999}

    with pytest.raises(DatabaseError, match="ck_events_times"):
        publish(database, [event_row("e1"), bad])

    assert count(database, "analyses") == count(database, "events") == 0
    assert database.transact(current_status, "v1")[0]["state"] == "received"


def test_the_newest_upload_is_current_whatever_finishes_last(database: Database) -> None:
    newer = replace(UPLOAD, upload_id="u2", version_id="2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    database.transact(record_upload, UPLOAD)
    database.transact(record_upload, newer)

    assert publish(database, [event_row("e9")], analysis_id="a2", upload_id="u2").current
    late = publish(database, ROWS, replace(FACTS, width=1), requested_at=NOON + timedelta(days=1))

    assert (late.inserted, late.current) == (True, False)
    assert [row["event_id"] for row in database.transact(current_events, "v1")] == ["e9"]
    assert database.transact(latest_upload, "v1") == newer


def test_of_one_upload_the_last_request_is_current(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    later = NOON + timedelta(minutes=1)

    published = publish(database, [event_row("e9")], analysis_id="a2", requested_at=later)
    assert (published.current, published.first) == (True, True)
    published = publish(database)
    assert (published.current, published.first, published.inserted) == (False, False, True)
    # Asking for the first one again, later still, makes it current without writing it again.
    again = publish(database, requested_at=NOON + timedelta(hours=1))

    assert (again.inserted, again.current) == (False, True)
    assert [row["is_current"] for row in database.transact(analyses_of, "v1")] == [False, True]


def test_late_knowledge_is_added_and_never_taken_away(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(
        record_upload, replace(UPLOAD, external_id="84", recorded_at=NOON, recorded_at_source="message")
    )
    database.transact(record_upload, UPLOAD)

    known = database.transact(latest_upload, "v1")
    assert known is not None
    assert (known.external_id, known.recorded_at, known.recorded_at_source) == ("84", NOON, "message")
    assert [row["video_id"] for row in database.transact(current_status, "84")] == ["v1"]
    assert notices(database) == ["video.received"]


def test_status_follows_the_upload(database: Database) -> None:
    def state() -> tuple[str, float, str | None, str | None]:
        row = database.transact(current_status, "v1")[0]
        return row["state"], row["progress"], row["failure_class"], row["run_id"]

    database.transact(record_upload, UPLOAD)
    assert state() == ("received", 0.0, None, None)
    database.transact(mark_queued, {"u1": "r1"})
    assert state() == ("queued", 0.0, None, "r1")
    database.transact(mark_running, "u1", "r1", 0.5)
    assert state() == ("running", 0.5, None, "r1")
    database.transact(mark_queued, {"u1": "r1"})  # a late acknowledgement is no step back
    assert state()[0] == "running"
    database.transact(mark_failed, "u1", "r1", failure_class="internal", message="why")
    assert state() == ("failed", 0.5, "internal", "r1")
    database.transact(mark_running, "u1", "r2")
    assert state() == ("running", 0.0, None, "r2")
    publish(database, run_id="r2")
    assert state() == ("done", 1.0, None, "r2")
    assert not database.transact(
        mark_failed, "u1", "r2", failure_class="worker-lost", message="late", only_if_unfinished=True
    )
    database.transact(mark_cancelled, "u1", "r2")
    assert state()[0] == "done"
    assert notices(database) == ["video.received", "video.failed", "video.analyzed"]


def test_another_runs_failure_is_not_this_ones(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(mark_running, "u1", "r2")

    assert not database.transact(
        mark_failed, "u1", "r1", failure_class="worker-lost", message="x", only_if_unfinished=True
    )
    assert database.transact(
        mark_failed, "u1", "r2", failure_class="worker-lost", message="x", only_if_unfinished=True
    )


def test_a_retried_publication_changes_nothing_at_all(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(mark_running, "u1", "r1")
    publish(database)
    before = dump(database)

    publish(database)

    assert dump(database) == before
    assert notices(database) == ["video.received", "video.analyzed"]


def test_publishing_is_told_once_for_each_thing_it_changed(database: Database) -> None:
    def sent() -> int:
        return notices(database).count("video.analyzed")

    database.transact(record_upload, UPLOAD)
    publish(database)
    assert sent() == 1  # written
    later = NOON + timedelta(minutes=1)
    publish(database, [event_row("e9")], analysis_id="a2", run_id="r2", requested_at=later)
    assert sent() == 2  # written
    publish(database, run_id="r3", requested_at=NOON + timedelta(minutes=2))
    assert sent() == 3  # current again
    assert database.transact(current_status, "v1")[0]["run_id"] == "r3"
    database.transact(mark_running, "u1", "r4")
    publish(database, run_id="r4", requested_at=NOON + timedelta(minutes=3))
    assert sent() == 4  # a run that waited for it is done
    publish(database, run_id="r5", requested_at=NOON + timedelta(minutes=4))
    assert sent() == 4


def test_a_zombies_progress_is_no_news(database: Database) -> None:
    def state() -> tuple[str, float, str | None]:
        row = database.transact(current_status, "v1")[0]
        return row["state"], row["progress"], row["run_id"]

    database.transact(record_upload, UPLOAD)
    database.transact(mark_running, "u1", "r1")
    database.transact(mark_running, "u1", "r1", 0.5)
    assert state() == ("running", 0.5, "r1")
    database.transact(mark_running, "u1", "r2")
    database.transact(mark_running, "u1", "r1", 0.6)
    assert state() == ("running", 0.0, "r2")
    publish(database, run_id="r2")
    database.transact(mark_running, "u1", "r1", 0.7)
    database.transact(mark_running, "u1", "r2", 0.8)
    assert state() == ("done", 1.0, "r2")


@pytest.mark.parametrize("cancelled", ["waiting", "running", "failed"])
def test_a_cancelled_run_publishes_nothing_and_a_later_request_does(
    database: Database, cancelled: str
) -> None:
    database.transact(record_upload, UPLOAD)
    if cancelled != "waiting":
        database.transact(mark_running, "u1", "r1")
    if cancelled == "failed":
        database.transact(mark_failed, "u1", "r1", failure_class="internal", message="why")
    assert database.transact(cancel_upload, "u1", "Cancelled by kim.", "r1")
    for work in (
        lambda connection: mark_running(connection, "u1", "r1"),
        lambda connection: mark_running(connection, "u1", "r1", 0.5),
        lambda connection: publish_analysis(connection, ANALYSIS, ROWS, FACTS),
    ):
        with pytest.raises(UploadCancelled, match=r"Cancelled by kim\."):
            database.transact(work)
    assert database.transact(analyses_of, "v1") == []
    assert not database.transact(requeue, "u1", "r1", "r2", "It is tried again.")

    database.transact(mark_running, "u1", "r3")
    assert publish(database, run_id="r3").inserted
    assert not database.transact(cancel_upload, "u1", "Cancelled by kim.", "r3")
    assert database.transact(is_done_by, "u1", "r3")


def test_every_unfinished_run_is_cancelled(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(mark_running, "u1", "r1")
    assert database.transact(cancel_upload, "u1", "Cancelled by kim.", "r1")
    assert not database.transact(cancel_upload, "u1", "Cancelled by kim.", "r2")
    database.transact(mark_running, "u1", "r3")
    for run_id in ("r1", "r2"):
        with pytest.raises(UploadCancelled):
            publish(database, run_id=run_id)
        with pytest.raises(UploadCancelled):
            database.transact(mark_running, "u1", run_id)
        assert not database.transact(mark_failed, "u1", run_id, failure_class="internal", message="")
    assert publish(database, run_id="r3").inserted


def test_a_superseded_upload_is_no_failure(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(mark_running, "u1", "r1")

    assert database.transact(mark_superseded, "u1", "r1")

    row = database.transact(current_status, "v1")[0]
    assert (row["state"], row["failure_class"], row["run_id"]) == ("superseded", None, "r1")
    assert "newer upload" in row["message"]
    assert notices(database) == ["video.received"]
    assert not database.transact(mark_superseded, "nobody", "r1")


def test_another_runs_success_is_not_superseded(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    publish(database, run_id="r2")

    assert not database.transact(mark_superseded, "u1", "r1")
    assert database.transact(current_status, "v1")[0]["state"] == "done"


def test_unfinished_runs_are_those_that_somebody_waits_for(database: Database) -> None:
    for number in range(6):
        database.transact(record_upload, replace(UPLOAD, upload_id=f"u{number}", video_id=f"v{number}"))
    database.transact(mark_queued, {f"u{number}": f"r{number}" for number in range(1, 6)})
    database.transact(mark_running, "u2", "r2")
    database.transact(mark_failed, "u3", "r3", failure_class="internal", message="why")
    database.transact(mark_superseded, "u4", "r4")
    database.transact(mark_cancelled, "u5", "r5")

    assert sorted(database.transact(unfinished_runs)) == [("u1", "r1"), ("u2", "r2")]
