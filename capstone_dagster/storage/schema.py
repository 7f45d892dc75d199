"""The event store's tables as SQLAlchemy sees them; the migrations create them, a test keeps both equal.

Columns are only ever added: other systems read the views.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    Time,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

SCHEMA = "capstone"
metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)

STATES = (
    "received",
    "queued",
    "waiting-for-compute",
    "running",
    "done",
    "failed",
    "superseded",
    "cancelled",
)
FINAL_STATES = ("done", "failed", "superseded", "cancelled")
# Those in which a run has the upload and is not over.
UNFINISHED_STATES = ("queued", "waiting-for-compute", "running")


def _time(name: str, *, nullable: bool = True, now: bool = False) -> Column[object]:
    return Column(
        name, DateTime(timezone=True), nullable=nullable, server_default=func.now() if now else None
    )


videos = Table(
    "videos",
    metadata,
    Column("video_id", Text, primary_key=True),
    Column("external_id", Text),
    Column("external_id_source", Text),
    Column("bucket", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("camera", Text, nullable=False),
    Column("camera_source", Text),
    Column("version_id", Text),
    Column("etag", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("duration_ms", BigInteger),
    Column("width", Integer),
    Column("height", Integer),
    Column("fps", Double),
    Column("codec", Text),
    _time("recorded_at"),
    Column("recorded_at_source", Text),
    _time("uploaded_at", nullable=False),
    _time("first_seen_at", nullable=False, now=True),
    # By retention; null again when there is a newer upload.
    _time("raw_removed_at"),
    Index("ix_videos_external_id", "external_id"),
)

analyses = Table(
    "analyses",
    metadata,
    Column("analysis_id", Text, primary_key=True),
    Column("detection_id", Text, nullable=False),
    Column("video_id", Text, ForeignKey(videos.c.video_id, ondelete="CASCADE"), nullable=False),
    Column("upload_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_sha256", Text, nullable=False),
    Column("settings", JSONB, nullable=False),
    Column("detection_version", Integer, nullable=False),
    Column("events_version", Integer, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("frames_decoded", BigInteger, nullable=False),
    Column("frames_analyzed", BigInteger, nullable=False),
    Column("detections", BigInteger, nullable=False),
    Column("tracks", Integer, nullable=False),
    Column("events", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("gpu_seconds", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("objects_prefix", Text, nullable=False),
    _time("uploaded_at", nullable=False),
    _time("requested_at", nullable=False),
    _time("published_at", nullable=False, now=True),
    Column("is_current", Boolean, nullable=False),
    # By retention; null again when they were made anew.
    _time("files_removed_at"),
    Index("uq_analyses_current", "video_id", unique=True, postgresql_where=text("is_current")),
    Index("ix_analyses_video_id", "video_id", "published_at"),
    Index("ix_analyses_detection_id", "detection_id"),
)

events = Table(
    "events",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("analysis_id", Text, ForeignKey(analyses.c.analysis_id, ondelete="CASCADE"), nullable=False),
    Column("video_id", Text, nullable=False),
    Column("camera", Text, nullable=False),
    Column("track_id", Integer, nullable=False),
    Column("label", Text, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    _time("started_at"),
    _time("ended_at"),
    Column("first_frame", Integer, nullable=False),
    Column("last_frame", Integer, nullable=False),
    Column("sample_interval_ms", Double, nullable=False),
    Column("detections", Integer, nullable=False),
    Column("best_score", Double, nullable=False),
    Column("mean_score", Double, nullable=False),
    Column("best_ms", BigInteger, nullable=False),
    Column("best_box", ARRAY(Double), nullable=False),
    Column("face_score", Double),
    Column("face_box", ARRAY(Double)),
    Column("truncated_start", Boolean, nullable=False),
    Column("truncated_end", Boolean, nullable=False),
    Column("thumbnail_key", Text),
    # By the zones of the camera when the events were derived; see `analysis.zones`.
    Column("zones", JSONB, nullable=False, server_default=text("'[]'")),
    Column("crossings", JSONB, nullable=False, server_default=text("'[]'")),
    CheckConstraint("start_ms >= 0 AND start_ms <= best_ms AND best_ms <= end_ms", name="times"),
    CheckConstraint("cardinality(best_box) = 4", name="best_box"),
    CheckConstraint("face_box IS NULL OR cardinality(face_box) = 4", name="face_box"),
    Index("ix_events_analysis_id", "analysis_id"),
    Index("ix_events_video_start", "video_id", "start_ms"),
    Index("ix_events_camera_started", "camera", "started_at"),
    Index("ix_events_started", "started_at", "event_id", postgresql_where=text("started_at IS NOT NULL")),
    Index(
        "ix_events_undated", "video_id", "start_ms", "event_id", postgresql_where=text("started_at IS NULL")
    ),
)

video_status = Table(
    "video_status",
    metadata,
    Column("upload_id", Text, primary_key=True),
    Column("video_id", Text, ForeignKey(videos.c.video_id, ondelete="CASCADE"), nullable=False),
    Column("state", Text, nullable=False),
    Column("progress", Double, nullable=False, server_default=text("0")),
    Column("failure_class", Text),
    Column("message", Text),
    Column("run_id", Text),
    Column("cancelled_run_ids", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("version_id", Text),
    Column("etag", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    _time("uploaded_at", nullable=False),
    _time("updated_at", nullable=False, now=True),
    # S3 tells the time of an upload in whole seconds; this tells apart those of one second.
    Column("recorded_order", BigInteger, Identity(always=True), nullable=False),
    CheckConstraint(f"state IN ({', '.join(repr(state) for state in STATES)})", name="state"),
    CheckConstraint("progress >= 0 AND progress <= 1", name="progress"),
    Index("ix_video_status_video_id", "video_id", "uploaded_at"),
    Index(
        "ix_video_status_unfinished",
        "recorded_order",
        postgresql_where=text("state IN ('queued', 'waiting-for-compute', 'running')"),
    ),
    Index("ix_video_status_failed", "updated_at", postgresql_where=text("state = 'failed'")),
)

zones = Table(
    "zones",
    metadata,
    Column("camera", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("points", JSONB, nullable=False),
    Column("anchor", Text, nullable=False),
    _time("set_at", nullable=False, now=True),
    CheckConstraint("kind IN ('polygon', 'line')", name="kind"),
)

# `timezone` is that of the hours.
watches = Table(
    "watches",
    metadata,
    Column("name", Text, primary_key=True),
    *(Column(name, Text) for name in ("camera", "zone", "label")),
    *(Column(name, Time) for name in ("from_time", "to_time")),
    Column("timezone", Text, nullable=False),
    CheckConstraint("(from_time IS NULL) = (to_time IS NULL)", name="hours"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("notice_id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("video_id", Text, nullable=False),
    Column("upload_id", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    _time("created_at", nullable=False, now=True),
    _time("sent_at"),
    # Of one that SNS refused while it took others: how often, why, and when it is tried again.
    Column("refusals", Integer, nullable=False, server_default=text("0")),
    Column("refusal", Text),
    _time("try_at"),
    Index("ix_outbox_unsent", "notice_id", postgresql_where=text("sent_at IS NULL")),
    Index("ix_outbox_unsent_video", "video_id", "notice_id", postgresql_where=text("sent_at IS NULL")),
    Index("ix_outbox_sent_at", "sent_at", postgresql_where=text("sent_at IS NOT NULL")),
)

erasures = Table(
    "erasures",
    metadata,
    Column("erasure_id", BigInteger, Identity(always=True), primary_key=True),
    # SHA-256 of the video's id: with the id its erasure can be proved; the hash does not reveal it.
    Column("video_hash", Text, nullable=False),
    Column("requested_by", Text, nullable=False),
    _time("begun_at", nullable=False, now=True),
    _time("finished_at"),
    # What was removed, names to numbers.
    Column("counts", JSONB, nullable=False, server_default=text("'{}'")),
    Index("uq_erasures_under_way", "video_hash", unique=True, postgresql_where=text("finished_at IS NULL")),
    Index("ix_erasures_video_hash", "video_hash", "begun_at"),
)
