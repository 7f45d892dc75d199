"""The event store's promises, on a real PostgreSQL: one effect, whole or not at all, newest is current."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import make_url

from capstone_dagster.storage.database import DatabaseError, SchemaMissing
from capstone_dagster.storage.errors import DatabaseUnavailable
from capstone_dagster.storage.event_store import Analysis, EventStore, VideoFacts, VideoUpload
from capstone_dagster.storage.schema import metadata

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
UPLOAD = VideoUpload(
    upload_id="u1",
    video_id="v1",
    external_id=None,
    bucket="raw",
    key="gate/a.mp4",
    version_id="1",
    etag="e",
    size_bytes=5,
    camera="gate",
    recorded_at=None,
    recorded_at_source=None,
    uploaded_at=NOON,
)
ANALYSIS = Analysis(
    analysis_id="a1",
    detection_id="d1",
    video_id="v1",
    upload_id="u1",
    model="m",
    model_sha256="0" * 64,
    settings={"sample_fps": 5},
    detection_version=1,
    events_version=1,
    run_id="r1",
    frames_decoded=100,
    frames_analyzed=50,
    detections=20,
    tracks=2,
    events=2,
    device="cpu",
    backend="b",
    gpu_seconds=0.0,
    seconds=1.5,
    objects_prefix="file:///x",
    requested_at=NOON,
)
FACTS = VideoFacts(
    duration_ms=4000, width=64, height=48, fps=25.0, codec="h264", recorded_at=None, recorded_at_source=None
)


def event_row(event_id: str, start_ms: int = 0) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "camera": "gate",
        "track_id": 1,
        "label": "person",
        "start_ms": start_ms,
        "end_ms": start_ms + 1000,
        "started_at": None,
        "ended_at": None,
        "first_frame": 0,
        "last_frame": 25,
        "sample_interval_ms": 200.0,
        "detections": 5,
        "best_score": 0.9,
        "mean_score": 0.8,
        "best_ms": start_ms + 200,
        "best_box": (0.1, 0.2, 0.3, 0.4),
        "face_score": None,
        "face_box": None,
        "truncated_start": False,
        "truncated_end": False,
        "thumbnail_key": None,
    }


ROWS = [event_row("e1"), event_row("e2", 2000)]


def count(store: EventStore, table: str) -> int:
    with store.engine.connect() as connection:
        return connection.execute(sa.text(f"SELECT count(*) FROM capstone.{table}")).scalar_one()


def notices(store: EventStore) -> list[str]:
    with store.engine.connect() as connection:
        return list(
            connection.execute(sa.text("SELECT kind FROM capstone.outbox ORDER BY notice_id")).scalars()
        )


def test_migrations_make_what_the_code_expects(event_store: EventStore) -> None:
    def ours(name: str | None, kind: str, _: Mapping[str, Any]) -> bool:
        return kind != "schema" or name == "capstone"

    options = {"include_schemas": True, "include_name": ours, "compare_type": True}
    with event_store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_migrating_at_once_is_safe(database_url: str) -> None:
    stores = [EventStore(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(EventStore.migrate, stores))

    assert count(stores[0], "videos") == 0
    for store in stores:
        store.close()


def test_publishing_twice_changes_nothing(event_store: EventStore) -> None:
    event_store.record_upload(UPLOAD)

    first = event_store.publish(ANALYSIS, ROWS, FACTS)
    again = event_store.publish(replace(ANALYSIS, run_id="r2"), ROWS, FACTS)

    assert (first.inserted, first.current) == (True, True)
    assert (again.inserted, again.current, again.published_at) == (False, True, first.published_at)
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

    assert event_store.publish(later, [event_row("e9")], FACTS).current
    assert not event_store.publish(ANALYSIS, ROWS, FACTS).current
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


def test_readers_read_the_views_and_nothing_else(event_store: EventStore, database_url: str) -> None:
    event_store.record_upload(UPLOAD)
    event_store.publish(ANALYSIS, ROWS, FACTS)
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET ROLE capstone_reader")
        assert connection.execute("SELECT count(*) FROM capstone.current_events").fetchone() == (2,)
        assert connection.execute("SELECT state FROM capstone.current_status").fetchone() == ("done",)
        for forbidden in ("SELECT 1 FROM capstone.events", "DELETE FROM capstone.video_status"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)


def test_missing_tables_say_what_to_do(database_url: str) -> None:
    store = EventStore(database_url)
    with pytest.raises(SchemaMissing, match="capstone migrate"):
        store.current_events()
    store.close()


def test_no_server_is_told_without_the_password() -> None:
    store = EventStore("postgresql+psycopg://user:hunter2@127.0.0.1:1/capstone")
    with pytest.raises(DatabaseUnavailable, match="does not answer") as caught:
        store.current_events()
    assert "hunter2" not in str(caught.value)
    assert caught.value.failure_class == "database-unavailable"
