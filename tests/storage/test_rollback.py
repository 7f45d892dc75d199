"""The way back to an earlier analysis: at once, announced, and no obstacle to what is asked for later."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from capstone_dagster.storage.analyses import NotRolledBack, analyses_of, publish_analysis, roll_back
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.video_status import current_status
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import ANALYSIS, FACTS, NOON, UPLOAD, event_row, notices, publish

SECOND = replace(ANALYSIS, analysis_id="a2", run_id="r2", requested_at=NOON + timedelta(minutes=1), events=1)


@pytest.fixture
def database(database: Database) -> Database:
    """A video with two analyses, the second one current."""
    database.transact(record_upload, UPLOAD)
    publish(database)
    database.transact(publish_analysis, SECOND, [event_row("e9")], FACTS)
    return database


def seen(database: Database) -> list[str]:
    return [row["event_id"] for row in database.transact(current_events, "v1")]


def test_rolling_back_shows_the_earlier_events_and_tells_consumers(database: Database) -> None:
    before = len(notices(database))
    assert seen(database) == ["e9"]

    done = database.transact(roll_back, "v1", "a1")

    assert (done.analysis_id, done.replaced, done.events, done.changed) == ("a1", "a2", 2, True)
    assert seen(database) == ["e1", "e2"]
    assert notices(database)[before:] == ["video.analyzed"]
    assert database.transact(current_status, "v1")[0]["state"] == "done"


def test_rolling_back_again_changes_nothing_that_anybody_sees(database: Database) -> None:
    database.transact(roll_back, "v1", "a1")
    before = notices(database)

    again = database.transact(roll_back, "v1", "a1")

    assert (again.replaced, again.changed) == ("a1", False)
    assert seen(database) == ["e1", "e2"]
    assert notices(database) == before


def test_what_was_asked_for_before_leaves_it_and_a_later_request_replaces_it(
    database: Database,
) -> None:
    database.transact(roll_back, "v1", "a1")

    # A duplicate of the message that made the second one, and a run that was asked for before and is late.
    assert not database.transact(
        publish_analysis, replace(SECOND, run_id="r3"), [event_row("e9")], FACTS
    ).current
    before = datetime.now(UTC) - timedelta(hours=1)
    late = replace(ANALYSIS, analysis_id="a3", requested_at=before)
    assert not database.transact(publish_analysis, late, [event_row("e7")], FACTS).current
    assert seen(database) == ["e1", "e2"]

    later = replace(ANALYSIS, analysis_id="a4", requested_at=datetime.now(UTC) + timedelta(minutes=1))
    assert database.transact(publish_analysis, later, [event_row("e8")], FACTS).current
    assert seen(database) == ["e8"]


def test_a_clock_ahead_does_not_outlast_a_rollback(database: Database) -> None:
    """Dagster's clock wrote when an analysis was asked for: PostgreSQL's may be behind it."""
    ahead = replace(ANALYSIS, analysis_id="a3", requested_at=datetime.now(UTC) + timedelta(minutes=5))
    database.transact(publish_analysis, ahead, [event_row("e7")], FACTS)

    database.transact(roll_back, "v1", "a1")
    database.transact(publish_analysis, ahead, [event_row("e7")], FACTS)

    assert seen(database) == ["e1", "e2"]


def test_rolling_back_while_others_publish_leaves_one_current(database: Database) -> None:
    def act(number: int) -> None:
        if number % 2:
            database.transact(roll_back, "v1", f"a{1 + number % 4 // 2}")
        else:
            database.transact(publish_analysis, SECOND, [event_row("e9")], FACTS)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(24)))

    assert sum(row["is_current"] for row in database.transact(analyses_of, "v1")) == 1


def test_what_cannot_be_rolled_back_to_is_refused(database: Database) -> None:
    newer = replace(UPLOAD, upload_id="u2", version_id="2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    with pytest.raises(NotRolledBack, match="no video 'v2'"):
        database.transact(roll_back, "v2", "a1")
    with pytest.raises(NotRolledBack, match="capstone analyses v1"):
        database.transact(roll_back, "v1", "a9")
    database.transact(record_upload, newer)
    publish(database, [event_row("e5")], analysis_id="b1", upload_id="u2")
    before = notices(database)

    with pytest.raises(NotRolledBack, match="overwritten since"):
        database.transact(roll_back, "v1", "a1")

    assert seen(database) == ["e5"]
    assert notices(database) == before


def test_while_a_newer_upload_is_analysed_the_older_ones_analyses_can_be_exchanged(
    database: Database,
) -> None:
    newer = replace(UPLOAD, upload_id="u2", version_id="2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    database.transact(record_upload, newer)

    assert database.transact(roll_back, "v1", "a1").changed
    assert publish(database, [event_row("e5")], analysis_id="b1", upload_id="u2").current
