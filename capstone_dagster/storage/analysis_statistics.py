"""What earlier analyses say: the usual figures of a camera's videos, and how long passes take.

Each function needs a transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from capstone_dagster.storage.schema import analyses, events, videos

# What must be equal for numbers of detections to be comparable.
_COMPARABLE = ("sample_fps", "labels", "min_score", "motion_gate")
# Recent enough for today's machines, and enough that one slow machine does not matter.
_PASSES_LOOKED_AT = 100


@dataclass(frozen=True, slots=True)
class AnalysisFigures:
    """The figures by which an analysis is compared with others of its camera.

    Attributes:
        duration_ms: of the video; None if unknown.
        mean_score: of the detections in its events, 0–1; None without events.
    """

    analysis_id: str
    detections: int
    duration_ms: int | None
    model_sha256: str
    mean_score: float | None


@dataclass(frozen=True, slots=True)
class Pace:
    """How long passes took.

    Attributes:
        passes: how many were looked at.
        seconds: for each second of video.
        gpu_seconds: those of them that a GPU was held for; 0 where all were made on a CPU.
    """

    passes: int
    seconds: float
    gpu_seconds: float


def camera_history(
    connection: sa.Connection, analysis_id: str, *, limit: int
) -> tuple[AnalysisFigures | None, list[AnalysisFigures]]:
    """An analysis's figures, and those of the same camera's other videos, latest uploads first.

    Others are current analyses made with settings that leave the numbers comparable.

    Args:
        limit: the most of the others.
    """
    own = connection.execute(_figures().where(analyses.c.analysis_id == analysis_id)).mappings().first()
    this, this_video = analyses.alias("this"), videos.alias("this_video")
    same_settings = [analyses.c.settings[name] == this.c.settings[name] for name in _COMPARABLE]
    others = (
        _figures()
        .join(this, this.c.analysis_id == analysis_id)
        .join(this_video, this_video.c.video_id == this.c.video_id)
        .where(
            videos.c.camera == this_video.c.camera,
            videos.c.video_id != this.c.video_id,
            analyses.c.is_current,
            *same_settings,
        )
        .order_by(analyses.c.uploaded_at.desc())
        .limit(limit)
    )
    return (
        None if own is None else AnalysisFigures(**own),
        [AnalysisFigures(**row) for row in connection.execute(others).mappings()],
    )


def _figures() -> sa.Select[tuple[object, ...]]:
    # Each detection counts once, and each event as often as it was seen.
    score = sa.func.sum(events.c.mean_score * events.c.detections) / sa.func.sum(events.c.detections)
    mean_score = (
        sa.select(score).where(events.c.analysis_id == analyses.c.analysis_id).correlate(analyses)
    ).scalar_subquery()
    return sa.select(
        analyses.c.analysis_id,
        analyses.c.detections,
        videos.c.duration_ms,
        analyses.c.model_sha256,
        mean_score.label("mean_score"),
    ).join_from(analyses, videos, analyses.c.video_id == videos.c.video_id)


def finished_detections(connection: sa.Connection, detection_ids: Collection[str]) -> set[str]:
    """Those of these detections that have a published analysis and whose files are kept."""
    statement = sa.select(analyses.c.detection_id).where(
        analyses.c.detection_id.in_(detection_ids), analyses.c.files_removed_at.is_(None)
    )
    return set(connection.execute(statement).scalars())


def recent_pace(
    connection: sa.Connection, *, model_sha256: str | None = None, settings: Mapping[str, Any] | None = None
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
