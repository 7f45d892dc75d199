"""The statements that tell what analysing videos again takes: which there are, what is finished, the pace.

Each takes the connection of a transaction that its caller ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from capstone_dagster.storage.records import Pace
from capstone_dagster.storage.schema import analyses, videos

# Recent enough for today's machines, and so many that one slow one does not matter.
_PASSES_LOOKED_AT = 100


def of_videos(connection: sa.Connection) -> list[dict[str, Any]]:
    """Every video: the bytes of its latest upload, and what its current analysis was made with, if any."""
    columns = ("video_id", "camera", "uploaded_at", "etag", "size_bytes", "duration_ms")
    current = sa.and_(analyses.c.video_id == videos.c.video_id, analyses.c.is_current)
    statement = (
        sa.select(*(videos.c[name] for name in columns), analyses.c.model, analyses.c.model_sha256)
        .join_from(videos, analyses, current, isouter=True)
        .order_by(videos.c.uploaded_at, videos.c.video_id)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def finished(connection: sa.Connection, detection_ids: Collection[str]) -> set[str]:
    """Those of these detections that an analysis was published of and whose files are kept."""
    statement = sa.select(analyses.c.detection_id).where(
        analyses.c.detection_id.in_(detection_ids), analyses.c.files_removed_at.is_(None)
    )
    return set(connection.execute(statement).scalars())


def pace(
    connection: sa.Connection, *, model_sha256: str | None, settings: Mapping[str, Any] | None
) -> Pace | None:
    """How long the latest passes took for each second of video; None where there were none.

    Args:
        model_sha256, settings: only passes with these; None: with any.
    """
    # A pass counts once, however many analyses were made of it, by the first of them.
    passes = (
        sa.select(analyses, videos.c.duration_ms)
        .distinct(analyses.c.detection_id)
        .join_from(analyses, videos, videos.c.video_id == analyses.c.video_id)
        .where(videos.c.duration_ms > 0)
        .order_by(analyses.c.detection_id, analyses.c.published_at)
    )
    if model_sha256 is not None:
        passes = passes.where(analyses.c.model_sha256 == model_sha256)
    if settings is not None:
        passes = passes.where(analyses.c.settings == sa.cast(dict(settings), analyses.c.settings.type))
    every = passes.subquery()
    latest = sa.select(every).order_by(every.c.published_at.desc()).limit(_PASSES_LOOKED_AT).subquery()
    total = sa.select(
        sa.func.count(),
        sa.func.sum(latest.c.seconds),
        sa.func.sum(latest.c.gpu_seconds),
        sa.func.sum(latest.c.duration_ms),
    )
    count, seconds, gpu_seconds, duration_ms = connection.execute(total).one()
    if not count:
        return None
    video_s = float(duration_ms) / 1000
    return Pace(passes=count, seconds=seconds / video_s, gpu_seconds=gpu_seconds / video_s)
