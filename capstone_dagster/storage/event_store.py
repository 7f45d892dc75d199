"""The event store: one transaction publishes one analysis, and a second attempt changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage.database import DatabaseError, database_errors, open_engine
from capstone_dagster.storage.database import migrate as migrate_engine
from capstone_dagster.storage.schema import SCHEMA, analyses, events, outbox, video_status, videos

State = Literal[
    "received", "queued", "waiting-for-compute", "running", "done", "failed", "superseded", "cancelled"
]

_EVENT_COLUMNS = tuple(column.name for column in events.columns)
# JSON as PostgreSQL takes it; ensure_ascii off keeps keys in any script readable in psql.
_json = partial(json.dumps, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class VideoUpload:
    """One upload as intake knows it: identity, whereabouts, and what is known about the recording.

    Attributes:
        upload_id, video_id, external_id, camera: see the identities in the documentation.
        etag: S3's, without quotes; with `size_bytes` it stands for the bytes.
        recorded_at: wall-clock time of the video's first frame, timezone-aware; None if unknown.
        recorded_at_source: `message`, `metadata`, `name` or `container`; None if unknown.
        uploaded_at: S3's Last-Modified, timezone-aware.
    """

    upload_id: str
    video_id: str
    external_id: str | None
    bucket: str
    key: str
    version_id: str | None
    etag: str
    size_bytes: int
    camera: str
    recorded_at: datetime | None
    recorded_at_source: str | None
    uploaded_at: datetime

    @property
    def url(self) -> str:
        """`s3://bucket/key`, for people."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What is known of the video once it is analysed; lengths in pixels, duration in milliseconds."""

    duration_ms: int
    width: int
    height: int
    fps: float | None
    codec: str
    recorded_at: datetime | None
    recorded_at_source: str | None


@dataclass(frozen=True, slots=True)
class Analysis:
    """One row of `analyses`, but for what the database itself decides.

    Attributes:
        requested_at: when the run that publishes it was asked for; decides which analysis is current.
        gpu_seconds: 0 on a CPU.
        seconds: wall time of the pass over the pixels.
    """

    analysis_id: str
    detection_id: str
    video_id: str
    upload_id: str
    model: str
    model_sha256: str
    settings: Mapping[str, Any]
    detection_version: int
    events_version: int
    run_id: str
    frames_decoded: int
    frames_analyzed: int
    detections: int
    tracks: int
    events: int
    device: str
    backend: str
    gpu_seconds: float
    seconds: float
    objects_prefix: str
    requested_at: datetime


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing did.

    Attributes:
        inserted: rows were written; False when this analysis was published before.
        current: it is what consumers now see; False when a newer upload's analysis is.
        published_at: when it was first published.
    """

    inserted: bool
    current: bool
    published_at: datetime


class EventStore:
    """Videos, their status, analyses and events in PostgreSQL.

    Every method raises the classes of :mod:`capstone_dagster.storage.database`:
    `DatabaseUnavailable`, `SchemaMissing`, `PermissionDenied`, `DatabaseError`.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)

    def close(self) -> None:
        """Close pooled connections."""
        self.engine.dispose()

    def migrate(self) -> None:
        """Create or upgrade the tables."""
        migrate_engine(self.engine)

    def record_upload(self, upload: VideoUpload) -> None:
        """Remember an upload and that it was received; again changes nothing but what was unknown.

        A newer upload of the same object replaces the older one's whereabouts; an external id or recording
        time that arrives late is added.
        """
        values = {
            name: value for name, value in asdict(upload).items() if name in videos.c and name != "upload_id"
        }
        row = insert(videos).values(values)
        newer = videos.c.uploaded_at <= row.excluded.uploaded_at
        changed = {
            name: sa.case((newer, row.excluded[name]), else_=videos.c[name])
            for name in ("version_id", "etag", "size_bytes", "uploaded_at", "camera")
        }
        for name in ("external_id", "recorded_at", "recorded_at_source"):
            changed[name] = sa.case(
                (newer, sa.func.coalesce(row.excluded[name], videos.c[name])),
                else_=sa.func.coalesce(videos.c[name], row.excluded[name]),
            )
        with database_errors(self.engine), self.engine.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=["video_id"], set_=changed))
            first = connection.execute(
                insert(video_status)
                .values(
                    upload_id=upload.upload_id,
                    video_id=upload.video_id,
                    state="received",
                    uploaded_at=upload.uploaded_at,
                )
                .on_conflict_do_nothing()
                .returning(video_status.c.upload_id)
            ).first()
            if first is not None:
                self._notify(connection, "video.received", upload.upload_id, upload.video_id, {})

    def mark_queued(self, run_ids: Mapping[str, str]) -> None:
        """Uploads whose run is on record move from `received` to `queued`.

        Args:
            run_ids: upload id → run id.
        """
        if not run_ids:
            return
        statement = (
            sa.update(video_status)
            .where(video_status.c.upload_id == sa.bindparam("upload"), video_status.c.state == "received")
            .values(state="queued", run_id=sa.bindparam("run"), updated_at=sa.func.now())
        )
        with database_errors(self.engine), self.engine.begin() as connection:
            connection.execute(statement, [{"upload": upload, "run": run} for upload, run in run_ids.items()])

    def mark_running(self, upload_id: str, run_id: str, progress: float = 0.0) -> None:
        """A run works on the upload; `progress` is the share of the video that is behind it, 0–1."""
        self._set_status(upload_id, state="running", progress=progress, run_id=run_id)

    def mark_failed(
        self,
        upload_id: str,
        run_id: str,
        *,
        failure_class: str,
        message: str,
        only_if_unfinished: bool = False,
    ) -> bool:
        """A run of the upload ended in failure.

        Args:
            only_if_unfinished: leave the row alone if it is already final, or belongs to another run.

        Returns:
            Whether the row was changed; the notice `video.failed` is queued with it.
        """
        conditions = [video_status.c.upload_id == upload_id]
        if only_if_unfinished:
            conditions = _unfinished(upload_id, run_id)
        statement = (
            sa.update(video_status)
            .where(*conditions)
            .values(
                state="failed",
                failure_class=failure_class,
                message=message,
                run_id=run_id,
                updated_at=sa.func.now(),
            )
            .returning(video_status.c.video_id)
        )
        with database_errors(self.engine), self.engine.begin() as connection:
            video_id = connection.execute(statement).scalar()
            if video_id is None:
                return False
            payload = {"failure_class": failure_class, "message": message, "run_id": run_id}
            self._notify(connection, "video.failed", upload_id, video_id, payload)
            return True

    def mark_cancelled(self, upload_id: str, run_id: str) -> None:
        """An operator ended the upload's run; a finished upload, or one with another run, stays as it is."""
        statement = (
            sa.update(video_status)
            .where(*_unfinished(upload_id, run_id))
            .values(state="cancelled", run_id=run_id, updated_at=sa.func.now())
        )
        with database_errors(self.engine), self.engine.begin() as connection:
            connection.execute(statement)

    def publish(
        self, analysis: Analysis, rows: Sequence[Mapping[str, Any]], video: VideoFacts
    ) -> Publication:
        """Write an analysis with its events and make it current, in one transaction.

        The same analysis again writes nothing and only becomes current. An analysis of an older upload than
        the current one is stored without becoming current; between analyses of one upload the one asked for
        last wins.

        Args:
            rows: one mapping a row of `events`, without analysis_id and video_id.
        """
        with database_errors(self.engine), self.engine.begin() as connection:
            # The video's row is the lock that puts publications of one video in order.
            found = connection.execute(
                sa.select(videos.c.video_id).where(videos.c.video_id == analysis.video_id).with_for_update()
            ).first()
            if found is None:
                raise DatabaseError(f"There is no video {analysis.video_id!r}: it was deleted meanwhile.")
            uploaded_at = connection.execute(
                sa.select(video_status.c.uploaded_at).where(video_status.c.upload_id == analysis.upload_id)
            ).scalar()
            if uploaded_at is None:
                raise DatabaseError(f"There is no upload {analysis.upload_id!r}: it was deleted meanwhile.")
            values = {**asdict(analysis), "uploaded_at": uploaded_at, "is_current": False}
            published_at = connection.execute(
                insert(analyses)
                .values(values)
                .on_conflict_do_nothing(index_elements=["analysis_id"])
                .returning(analyses.c.published_at)
            ).scalar()
            inserted = published_at is not None
            if inserted:
                self._copy_events(connection, analysis, rows)
            else:
                published_at = connection.execute(
                    sa.update(analyses)
                    .where(analyses.c.analysis_id == analysis.analysis_id)
                    .values(
                        uploaded_at=sa.func.greatest(analyses.c.uploaded_at, uploaded_at),
                        requested_at=sa.func.greatest(analyses.c.requested_at, analysis.requested_at),
                    )
                    .returning(analyses.c.published_at)
                ).scalar_one()
            current = self._make_current(connection, analysis.analysis_id, analysis.video_id)
            if current:
                known = {
                    name: sa.func.coalesce(videos.c[name], value) if name.startswith("recorded_at") else value
                    for name, value in asdict(video).items()
                }
                connection.execute(
                    sa.update(videos).where(videos.c.video_id == analysis.video_id).values(known)
                )
            connection.execute(
                sa.update(video_status)
                .where(video_status.c.upload_id == analysis.upload_id)
                .values(
                    state="done",
                    progress=1.0,
                    failure_class=None,
                    message=None,
                    run_id=analysis.run_id,
                    updated_at=sa.func.now(),
                )
            )
            payload = {"analysis_id": analysis.analysis_id, "events": analysis.events, "current": current}
            self._notify(connection, "video.analyzed", analysis.upload_id, analysis.video_id, payload)
        assert published_at is not None
        return Publication(inserted=inserted, current=current, published_at=published_at)

    def latest_upload(self, video_id: str) -> VideoUpload | None:
        """The newest upload known of a video; None if the video is unknown."""
        statement = (
            sa.select(video_status.c.upload_id, *videos.c)
            .join(videos, videos.c.video_id == video_status.c.video_id)
            .where(video_status.c.video_id == video_id)
            .order_by(video_status.c.uploaded_at.desc(), video_status.c.updated_at.desc())
            .limit(1)
        )
        with database_errors(self.engine), self.engine.connect() as connection:
            row = connection.execute(statement).mappings().first()
        if row is None:
            return None
        return VideoUpload(**{name: row[name] for name in VideoUpload.__dataclass_fields__})

    def finished_before(self, cutoff: datetime) -> list[str]:
        """Ids of videos whose every upload is older than `cutoff` and over, whichever way."""
        final = video_status.c.state.in_(("done", "failed", "superseded", "cancelled"))
        statement = (
            sa.select(video_status.c.video_id)
            .group_by(video_status.c.video_id)
            .having(sa.func.max(video_status.c.uploaded_at) < cutoff, sa.func.bool_and(final))
        )
        with database_errors(self.engine), self.engine.connect() as connection:
            return list(connection.execute(statement).scalars())

    def current_events(self, video: str | None = None, *, limit: int | None = None) -> list[dict[str, Any]]:
        """Rows of `current_events` in order of time, of all videos or of one (by its id or external id)."""
        return self._view("current_events", video, "video_id, start_ms, track_id", limit)

    def current_status(self, video: str | None = None, *, limit: int | None = None) -> list[dict[str, Any]]:
        """Rows of `current_status`, latest first, of all videos or of one (by its id or external id)."""
        return self._view("current_status", video, "updated_at DESC, video_id", limit)

    def analyses(self, video_id: str) -> list[dict[str, Any]]:
        """Rows of `analyses` of a video, oldest first."""
        statement = (
            sa.select(analyses).where(analyses.c.video_id == video_id).order_by(analyses.c.published_at)
        )
        with database_errors(self.engine), self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def _set_status(self, upload_id: str, **values: Any) -> None:
        statement = (
            sa.update(video_status)
            .where(video_status.c.upload_id == upload_id)
            .values(failure_class=None, message=None, updated_at=sa.func.now(), **values)
        )
        with database_errors(self.engine), self.engine.begin() as connection:
            connection.execute(statement)

    def _view(self, view: str, video: str | None, order: str, limit: int | None) -> list[dict[str, Any]]:
        query = f"SELECT * FROM {SCHEMA}.{view}"
        if video is not None:
            query += " WHERE video_id = :video OR external_id = :video"
        query += f" ORDER BY {order}"
        if limit is not None:
            query += " LIMIT :limit"
        parameters = {"video": video, "limit": limit}
        with database_errors(self.engine), self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.text(query), parameters).mappings()]

    @staticmethod
    def _copy_events(
        connection: sa.Connection, analysis: Analysis, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        # COPY is the fastest way in, and part of the transaction like any other statement.
        fixed = {"analysis_id": analysis.analysis_id, "video_id": analysis.video_id}
        driver = connection.connection.driver_connection
        assert driver is not None
        columns = ", ".join(_EVENT_COLUMNS)
        with (
            driver.cursor() as cursor,
            cursor.copy(f"COPY {SCHEMA}.events ({columns}) FROM STDIN") as copy,
        ):
            for row in rows:
                merged = {**row, **fixed}
                copy.write_row([_copyable(merged[column]) for column in _EVENT_COLUMNS])

    @staticmethod
    def _make_current(connection: sa.Connection, analysis_id: str, video_id: str) -> bool:
        asked = sa.tuple_(analyses.c.uploaded_at, analyses.c.requested_at)
        order = (
            sa.select(analyses.c.analysis_id)
            .where(
                analyses.c.video_id == video_id,
                sa.or_(analyses.c.is_current, analyses.c.analysis_id == analysis_id),
            )
            # On equal terms the one being published wins: it is what was asked for now.
            .order_by(asked.desc(), (analyses.c.analysis_id == analysis_id).desc())
            .limit(1)
        )
        if connection.execute(order).scalar() != analysis_id:
            return False
        # Two statements, because a unique index is checked row by row within one.
        others = sa.and_(analyses.c.video_id == video_id, analyses.c.analysis_id != analysis_id)
        connection.execute(sa.update(analyses).where(others, analyses.c.is_current).values(is_current=False))
        connection.execute(
            sa.update(analyses).where(analyses.c.analysis_id == analysis_id).values(is_current=True)
        )
        return True

    @staticmethod
    def _notify(
        connection: sa.Connection, kind: str, upload_id: str, video_id: str, payload: Mapping[str, Any]
    ) -> None:
        notice = {"kind": kind, "video_id": video_id, "upload_id": upload_id, **payload}
        connection.execute(
            insert(outbox).values(
                kind=kind, video_id=video_id, upload_id=upload_id, payload=json.loads(_json(notice))
            )
        )


def _unfinished(upload_id: str, run_id: str) -> list[sa.ColumnElement[bool]]:
    """The upload's status row, if it is not final and no other run has it."""
    return [
        video_status.c.upload_id == upload_id,
        video_status.c.state.in_(("received", "queued", "waiting-for-compute", "running")),
        sa.or_(video_status.c.run_id == run_id, video_status.c.run_id.is_(None)),
    ]


def _copyable(value: Any) -> Any:
    """psycopg writes lists as arrays, tuples as rows."""
    return list(value) if isinstance(value, tuple) else value
