"""The way back to an earlier analysis: at once, told, and no obstacle to what is asked for later."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from capstone_dagster.storage.currency import NotRolledBack
from capstone_dagster.storage.event_store import EventStore
from tests.storage.samples import ANALYSIS, FACTS, NOON, ROWS, UPLOAD, event_row, notices

SECOND = replace(ANALYSIS, analysis_id="a2", run_id="r2", requested_at=NOON + timedelta(minutes=1), events=1)


@pytest.fixture
def store(event_store: EventStore) -> EventStore:
    """A video with two analyses, the second one current."""
    event_store.record_upload(UPLOAD)
    event_store.publish(ANALYSIS, ROWS, FACTS)
    event_store.publish(SECOND, [event_row("e9")], FACTS)
    return event_store


def seen(store: EventStore) -> list[str]:
    return [row["event_id"] for row in store.current_events("v1")]


def test_rolling_back_shows_the_earlier_events_and_tells_consumers(store: EventStore) -> None:
    told = len(notices(store))
    assert seen(store) == ["e9"]

    done = store.roll_back("v1", "a1")

    assert (done.analysis_id, done.replaced, done.events, done.changed) == ("a1", "a2", 2, True)
    assert seen(store) == ["e1", "e2"]
    assert notices(store)[told:] == ["video.analyzed"]
    assert store.current_status("v1")[0]["state"] == "done"


def test_rolling_back_again_changes_nothing_that_anybody_sees(store: EventStore) -> None:
    store.roll_back("v1", "a1")
    told = notices(store)

    again = store.roll_back("v1", "a1")

    assert (again.replaced, again.changed) == ("a1", False)
    assert seen(store) == ["e1", "e2"]
    assert notices(store) == told


def test_what_was_asked_for_before_leaves_it_and_a_later_request_replaces_it(
    store: EventStore,
) -> None:
    store.roll_back("v1", "a1")

    # A duplicate of the message that made the second one, and a run that was asked for before and is late.
    assert not store.publish(replace(SECOND, run_id="r3"), [event_row("e9")], FACTS).current
    before = datetime.now(UTC) - timedelta(hours=1)
    late = replace(ANALYSIS, analysis_id="a3", requested_at=before)
    assert not store.publish(late, [event_row("e7")], FACTS).current
    assert seen(store) == ["e1", "e2"]

    later = replace(ANALYSIS, analysis_id="a4", requested_at=datetime.now(UTC) + timedelta(minutes=1))
    assert store.publish(later, [event_row("e8")], FACTS).current
    assert seen(store) == ["e8"]


def test_a_clock_ahead_does_not_outlast_a_rollback(store: EventStore) -> None:
    """Dagster's clock wrote when an analysis was asked for: PostgreSQL's may be behind it."""
    ahead = replace(ANALYSIS, analysis_id="a3", requested_at=datetime.now(UTC) + timedelta(minutes=5))
    store.publish(ahead, [event_row("e7")], FACTS)

    store.roll_back("v1", "a1")
    store.publish(ahead, [event_row("e7")], FACTS)

    assert seen(store) == ["e1", "e2"]


def test_rolling_back_while_others_publish_leaves_one_current(store: EventStore) -> None:
    def act(number: int) -> None:
        if number % 2:
            store.roll_back("v1", f"a{1 + number % 4 // 2}")
        else:
            store.publish(SECOND, [event_row("e9")], FACTS)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(24)))

    assert sum(row["is_current"] for row in store.analyses("v1")) == 1


def test_what_cannot_be_rolled_back_to_is_refused(store: EventStore) -> None:
    newer = replace(UPLOAD, upload_id="u2", version_id="2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    with pytest.raises(NotRolledBack, match="no video 'v2'"):
        store.roll_back("v2", "a1")
    with pytest.raises(NotRolledBack, match="capstone analyses v1"):
        store.roll_back("v1", "a9")
    store.record_upload(newer)
    store.publish(replace(ANALYSIS, analysis_id="b1", upload_id="u2"), [event_row("e5")], FACTS)
    told = notices(store)

    with pytest.raises(NotRolledBack, match="overwritten since"):
        store.roll_back("v1", "a1")

    assert seen(store) == ["e5"]
    assert notices(store) == told


def test_while_a_newer_upload_is_analysed_the_older_ones_analyses_can_be_exchanged(store: EventStore) -> None:
    newer = replace(UPLOAD, upload_id="u2", version_id="2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    store.record_upload(newer)

    assert store.roll_back("v1", "a1").changed
    assert store.publish(
        replace(ANALYSIS, analysis_id="b1", upload_id="u2"), [event_row("e5")], FACTS
    ).current
