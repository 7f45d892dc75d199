"""One upload, its analysis and its events, for every test that needs some; and what the tables hold."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from capstone_dagster.storage.analyses import Analysis, Publication, publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.uploads import VideoFacts, VideoUpload

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


def publish(
    database: Database,
    rows: Sequence[dict[str, Any]] = ROWS,
    facts: VideoFacts = FACTS,
    **changed: Any,
) -> Publication:
    """Publish the analysis with these changes."""
    return database.transact(publish_analysis, replace(ANALYSIS, **changed), rows, facts)


def count(database: Database, table: str) -> int:
    with database.engine.connect() as connection:
        return connection.execute(sa.text(f"SELECT count(*) FROM capstone.{table}")).scalar_one()


def notices(database: Database) -> list[str]:
    with database.engine.connect() as connection:
        return list(
            connection.execute(sa.text("SELECT kind FROM capstone.outbox ORDER BY notice_id")).scalars()
        )


def dump(
    database: Database, tables: Sequence[str] = ("videos", "analyses", "events", "video_status", "outbox")
) -> Any:
    """Every row of the tables, with PostgreSQL's own word for which version of the row it is."""
    with database.engine.connect() as connection:
        return {
            table: connection.execute(sa.text(f"SELECT xmin, * FROM capstone.{table} ORDER BY 2")).all()
            for table in tables
        }
