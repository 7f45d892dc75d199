"""The table `videos`: one row an object in S3, for all its versions. Each function needs a transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage import erasures, provenance, video_status
from capstone_dagster.storage.schema import analyses, videos
from capstone_dagster.storage.schema import video_status as statuses
from capstone_dagster.storage.uploads import VideoUpload


def record_upload(connection: sa.Connection, upload: VideoUpload, stated: Collection[str] = ()) -> None:
    """Store an upload and what is known of it; the same again changes nothing.

    Of one upload, what its message says takes precedence over what was derived; of recording times the one
    from the better source counts (message, metadata, name, container); unknown fields are filled. A newer
    upload of the same object replaces location, camera and recording time; the external id stays unless the
    upload brings one. Published events of the upload get its camera and times too.

    Args:
        stated: which of `external_id`, `camera` and `recorded_at` the message itself gave.

    Raises:
        RefusedByDatabase: PostgreSQL will never take one of its values.
        ErasureUnderWay: the video is being deleted.
    """
    row = insert(videos).values(provenance.first_row(upload, stated))
    # Changes nothing, but locks and returns the row that is there already.
    row = row.on_conflict_do_update(index_elements=["video_id"], set_={"key": row.excluded.key})
    video = dict(connection.execute(row.returning(*videos.c)).mappings().one())
    erasures.refuse_if_under_way(connection, upload.video_id)
    new = video_status.add_upload(connection, upload)
    latest = video_status.latest(connection, upload.video_id)
    assert latest is not None
    newest = new and latest["upload_id"] == upload.upload_id
    changed = provenance.learnt(video, upload, stated, newest=newest)
    provenance.change(connection, upload.video_id, latest["upload_id"], changed)


def latest_upload(connection: sa.Connection, video_id: str) -> VideoUpload | None:
    """The newest upload of a video; None if the video is unknown."""
    of_video = ("video_id", "external_id", "bucket", "key", "camera", "recorded_at", "recorded_at_source")
    of_upload = ("upload_id", "version_id", "etag", "size_bytes", "uploaded_at")
    statement = (
        sa.select(*(videos.c[name] for name in of_video), *(statuses.c[name] for name in of_upload))
        .join_from(videos, statuses, videos.c.video_id == statuses.c.video_id)
        .where(videos.c.video_id == video_id)
        .order_by(*video_status.LATEST_FIRST)
        .limit(1)
    )
    row = connection.execute(statement).mappings().first()
    return None if row is None else VideoUpload(**row)


def first_seen(connection: sa.Connection, video_ids: Collection[str]) -> datetime | None:
    """When the first of these videos was recorded here; None if none of them is known."""
    statement = sa.select(sa.func.min(videos.c.first_seen_at)).where(videos.c.video_id.in_(video_ids))
    return connection.execute(statement).scalar()


# When a video was filmed, and how that is known.
RECORDING_COLUMNS = ("recorded_at", "recorded_at_source")


def with_recording_times(
    connection: sa.Connection, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """These rows, which have a `video_id`, with :data:`RECORDING_COLUMNS` of their videos; else None."""
    statement = sa.select(videos.c.video_id, *(videos.c[name] for name in RECORDING_COLUMNS)).where(
        videos.c.video_id.in_({row["video_id"] for row in rows})
    )
    found = {row["video_id"]: dict(row) for row in connection.execute(statement).mappings()}
    unknown = dict.fromkeys(RECORDING_COLUMNS)
    return [{**row, **found.get(row["video_id"], unknown)} for row in rows]


def videos_with_models(connection: sa.Connection) -> list[dict[str, Any]]:
    """Every video, in order of upload, with the model of its current analysis.

    video_id, camera, uploaded_at, etag, size_bytes, duration_ms, model, model_sha256; None where nothing
    is known.
    """
    columns = ("video_id", "camera", "uploaded_at", "etag", "size_bytes", "duration_ms")
    current = sa.and_(analyses.c.video_id == videos.c.video_id, analyses.c.is_current)
    statement = (
        sa.select(*(videos.c[name] for name in columns), analyses.c.model, analyses.c.model_sha256)
        .join_from(videos, analyses, current, isouter=True)
        .order_by(videos.c.uploaded_at, videos.c.video_id)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]
