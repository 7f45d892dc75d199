"""The statements that judge an analysis by others: what its camera's videos usually have.

Each takes the connection of a transaction that its caller ends.
"""

from __future__ import annotations

import sqlalchemy as sa

from capstone_dagster.storage.records import AnalysisFigures
from capstone_dagster.storage.schema import analyses, events, videos

# What must be equal for numbers of detections to be comparable.
_COMPARABLE = ("sample_fps", "labels", "min_score", "motion_gate")


def figures(connection: sa.Connection, analysis_id: str) -> AnalysisFigures | None:
    """Those of one analysis; None if there is none of that id."""
    row = connection.execute(_figures().where(analyses.c.analysis_id == analysis_id)).mappings().first()
    return None if row is None else AnalysisFigures(**row)


def of_camera(connection: sa.Connection, analysis_id: str, limit: int) -> list[AnalysisFigures]:
    """Those of the current analyses of the same camera's other videos, latest uploads first.

    Only such as were made with settings that leave the numbers comparable.
    """
    this, this_video = analyses.alias("this"), videos.alias("this_video")
    same_settings = [analyses.c.settings[name] == this.c.settings[name] for name in _COMPARABLE]
    statement = (
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
    return [AnalysisFigures(**row) for row in connection.execute(statement).mappings()]


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
