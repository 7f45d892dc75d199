"""The event store's promises, on a real PostgreSQL: one effect, whole or not at all, newest is current."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from capstone_dagster.storage.database import DatabaseError
from capstone_dagster.storage.event_store import EventStore
from tests.storage.samples import ANALYSIS, FACTS, NOON, ROWS, UPLOAD, count, dump, event_row, notices


def test_publishing_twice_changes_nothing(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)

    first = event_store.publish(ANALYSIS, ROWS, FACTS)
    again = event_store.publish(replace(ANALYSIS, run_id="r2"), ROWS, FACTS)

    assert (first.inserted, first.current) == (True, True)
    assert (again.inserted, again.current, again.published_at) == (False, True, first.published_at)
    assert (first.first, again.first) == (True, False)
    assert count(event_store, "analyses") == 1
    assert [row["event_id"] for row in event_store.current_events("v1")] == ["e1", "e2"]
    assert event_store.current_events()[0]["best_box"] == [0.1, 0.2, 0.3, 0.4]


def test_publishing_at_once_has_one_effect(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: event_store.publish(ANALYSIS, ROWS, FACTS), range(8)))

    assert sum(publication.inserted for publication in done) == 1
    assert count(event_store, "events") == 2


def test_a_broken_row_publishes_nothing(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)
    bad = {**event_row("e2"), "best_ms": 99_999}

    with pytest.raises(DatabaseError, match="ck_events_times"):
        event_store.publish(ANALYSIS, [event_row("e1"), bad], FACTS)

    assert count(event_store, "analyses") == count(event_store, "events") == 0
    assert event_store.current_status("v1")[0]["state"] == "received"


def test_the_newest_upload_is_current_whatever_finishes_last(event_store: EventStore) -> None:
    newer = replace(UPLOAD, upload_id="u2", version_id="2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    event_store.record_upload(UPLOAD)
    event_store.record_upload(newer)
    second = replace(ANALYSIS, analysis_id="a2", upload_id="u2")

    assert event_store.publish(second, [event_row("e9")], FACTS).current
    late = event_store.publish(
        replace(ANALYSIS, requested_at=NOON + timedelta(days=1)), ROWS, replace(FACTS, width=1)
    )

    assert (late.inserted, late.current) == (True, False)
    assert [row["event_id"] for row in event_store.current_events("v1")] == ["e9"]
    assert event_store.latest_upload("v1") == newer


def test_of_one_upload_the_last_request_is_current(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)
    later = replace(ANALYSIS, analysis_id="a2", requested_at=NOON + timedelta(minutes=1))

    published = event_store.publish(later, [event_row("e9")], FACTS)
    assert (published.current, published.first) == (True, True)
    published = event_store.publish(ANALYSIS, ROWS, FACTS)
    assert (published.current, published.first, published.inserted) == (False, False, True)
    # Asking for the first one again, later still, makes it current without writing it again.
    again = event_store.publish(replace(ANALYSIS, requested_at=NOON + timedelta(hours=1)), ROWS, FACTS)

    assert (again.inserted, again.current) == (False, True)
    assert [row["is_current"] for row in event_store.analyses("v1")] == [False, True]


def test_late_knowledge_is_added_and_never_taken_away(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)
    event_store.record_upload(
        replace(UPLOAD, external_id="84", recorded_at=NOON, recorded_at_source="message")
    )
    event_store.record_upload(UPLOAD)

    known = event_store.latest_upload("v1")
    assert known is not None
    assert (known.external_id, known.recorded_at, known.recorded_at_source) == ("84", NOON, "message")
    assert [row["video_id"] for row in event_store.current_status("84")] == ["v1"]
    assert notices(event_store) == ["video.received"]


def test_status_follows_the_upload(event_store: EventStore) -> None:
    def state() -> tuple[str, float, str | None, str | None]:
        row = event_store.current_status("v1")[0]
        return row["state"], row["progress"], row["failure_class"], row["run_id"]

    event_store.record_upload(UPLOAD)
    assert state() == ("received", 0.0, None, None)
    event_store.mark_queued({"u1": "r1"})
    assert state() == ("queued", 0.0, None, "r1")
    event_store.mark_running("u1", "r1", 0.5)
    assert state() == ("running", 0.5, None, "r1")
    event_store.mark_queued({"u1": "r1"})  # a late acknowledgement is no step back
    assert state()[0] == "running"
    event_store.mark_failed("u1", "r1", failure_class="internal", message="why")
    assert state() == ("failed", 0.5, "internal", "r1")
    event_store.mark_running("u1", "r2")
    assert state() == ("running", 0.0, None, "r2")
    event_store.publish(replace(ANALYSIS, run_id="r2"), ROWS, FACTS)
    assert state() == ("done", 1.0, None, "r2")
    assert not event_store.mark_failed(
        "u1", "r2", failure_class="worker-lost", message="late", only_if_unfinished=True
    )
    event_store.mark_cancelled("u1", "r2")
    assert state()[0] == "done"
    assert notices(event_store) == ["video.received", "video.failed", "video.analyzed"]


def test_another_runs_failure_is_not_this_ones(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)
    event_store.mark_running("u1", "r2")

    assert not event_store.mark_failed(
        "u1", "r1", failure_class="worker-lost", message="x", only_if_unfinished=True
    )
    assert event_store.mark_failed(
        "u1", "r2", failure_class="worker-lost", message="x", only_if_unfinished=True
    )


def test_a_retried_publication_changes_nothing_at_all(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)
    event_store.mark_running("u1", "r1")
    event_store.publish(ANALYSIS, ROWS, FACTS)
    before = dump(event_store)

    event_store.publish(ANALYSIS, ROWS, FACTS)

    assert dump(event_store) == before
    assert notices(event_store) == ["video.received", "video.analyzed"]


def test_publishing_is_told_once_for_each_thing_it_changed(event_store: EventStore) -> None:
    def told() -> int:
        return notices(event_store).count("video.analyzed")

    event_store.record_upload(UPLOAD)
    event_store.publish(ANALYSIS, ROWS, FACTS)
    assert told() == 1  # written
    other = replace(ANALYSIS, analysis_id="a2", run_id="r2", requested_at=NOON + timedelta(minutes=1))
    event_store.publish(other, [event_row("e9")], FACTS)
    assert told() == 2  # written
    event_store.publish(replace(ANALYSIS, run_id="r3", requested_at=NOON + timedelta(minutes=2)), ROWS, FACTS)
    assert told() == 3  # current again
    assert event_store.current_status("v1")[0]["run_id"] == "r3"
    event_store.mark_running("u1", "r4")
    event_store.publish(replace(ANALYSIS, run_id="r4", requested_at=NOON + timedelta(minutes=3)), ROWS, FACTS)
    assert told() == 4  # a run that waited for it is done
    event_store.publish(replace(ANALYSIS, run_id="r5", requested_at=NOON + timedelta(minutes=4)), ROWS, FACTS)
    assert told() == 4


def test_a_zombies_progress_is_no_news(event_store: EventStore) -> None:
    def state() -> tuple[str, float, str | None]:
        row = event_store.current_status("v1")[0]
        return row["state"], row["progress"], row["run_id"]

    event_store.record_upload(UPLOAD)
    event_store.mark_running("u1", "r1")
    event_store.mark_running("u1", "r1", 0.5)
    assert state() == ("running", 0.5, "r1")
    event_store.mark_running("u1", "r2")
    event_store.mark_running("u1", "r1", 0.6)
    assert state() == ("running", 0.0, "r2")
    event_store.publish(replace(ANALYSIS, run_id="r2"), ROWS, FACTS)
    event_store.mark_running("u1", "r1", 0.7)
    event_store.mark_running("u1", "r2", 0.8)
    assert state() == ("done", 1.0, "r2")


def test_a_superseded_upload_is_no_failure(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)
    event_store.mark_running("u1", "r1")

    assert event_store.mark_superseded("u1", "r1")

    row = event_store.current_status("v1")[0]
    assert (row["state"], row["failure_class"], row["run_id"]) == ("superseded", None, "r1")
    assert "newer upload" in row["message"]
    assert notices(event_store) == ["video.received"]
    assert not event_store.mark_superseded("nobody", "r1")


def test_another_runs_success_is_not_superseded(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)
    event_store.publish(replace(ANALYSIS, run_id="r2"), ROWS, FACTS)

    assert not event_store.mark_superseded("u1", "r1")
    assert event_store.current_status("v1")[0]["state"] == "done"


def test_unfinished_runs_are_those_that_somebody_waits_for(event_store: EventStore) -> None:
    for number in range(6):
        event_store.record_upload(replace(UPLOAD, upload_id=f"u{number}", video_id=f"v{number}"))
    event_store.mark_queued({f"u{number}": f"r{number}" for number in range(1, 6)})
    event_store.mark_running("u2", "r2")
    event_store.mark_failed("u3", "r3", failure_class="internal", message="why")
    event_store.mark_superseded("u4", "r4")
    event_store.mark_cancelled("u5", "r5")

    assert sorted(event_store.unfinished_runs()) == [("u1", "r1"), ("u2", "r2")]
