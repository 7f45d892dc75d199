"""Which rows the retention settings let go, and the deletion of what belongs to them.

Each function needs a transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from capstone_dagster.storage.schema import FINAL_STATES, analyses, events, video_status, videos


@dataclass(frozen=True, slots=True)
class OldAnalysis:
    """An analysis that is to be deleted, or its files.

    Attributes:
        alone: its detections are deleted with it, because no other analysis uses them.
    """

    analysis_id: str
    detection_id: str
    alone: bool


DeleteFiles = Callable[[OldAnalysis], None]
"""Deletes the objects of an analysis; again does no harm."""


def videos_finished_before(connection: sa.Connection, before: datetime) -> list[str]:
    """Ids of videos whose every upload is older than `before` and in a final state."""
    return list(connection.execute(_finished(before)).scalars())


def videos_with_raw(
    connection: sa.Connection, before: datetime, most: int
) -> list[tuple[str, str, str, datetime]]:
    """(video id, bucket, key, time of the last upload known) of videos whose raw object is due.

    Every upload of them is final and older than `before`, and the raw object is there.
    """
    statement = (
        sa.select(videos.c.video_id, videos.c.bucket, videos.c.key, videos.c.uploaded_at)
        .where(videos.c.video_id.in_(_finished(before)), videos.c.raw_removed_at.is_(None))
        .order_by(videos.c.uploaded_at)
        .limit(most)
    )
    return list(connection.execute(statement).tuples())


def mark_raw_removed(connection: sa.Connection, video_id: str, until: datetime) -> None:
    """Record that the raw objects of uploads up to `until` are gone."""
    # A newer upload's object is there, and its row says so.
    this = sa.and_(videos.c.video_id == video_id, videos.c.uploaded_at <= until)
    connection.execute(sa.update(videos).where(this).values(raw_removed_at=sa.func.now()))


def analyses_with_files(connection: sa.Connection, before: datetime, most: int) -> list[str]:
    """Ids of analyses requested before, whose files are there.

    Detections are due when the youngest analysis that uses them is.
    """
    return _ids(connection, _old(before), _with_files(before), most=most)


def old_analyses(connection: sa.Connection, before: datetime, most: int, *, earlier_only: bool) -> list[str]:
    """Ids of analyses requested before.

    Args:
        earlier_only: leave out those that are current.
    """
    return _ids(connection, _old(before), _earlier(earlier_only), most=most)


def remove_files(connection: sa.Connection, analysis_id: str, before: datetime, delete: DeleteFiles) -> bool:
    """Have an analysis's files deleted, the thumbnails of its events among them.

    Returns:
        Whether they were; they stay if the analysis has been requested again meanwhile.
    """
    due = _due(connection, analysis_id, _old(before), _with_files(before))
    if due is None:
        return False
    delete(replace(due, alone=True))
    this = analyses.c.analysis_id == analysis_id
    connection.execute(sa.update(analyses).where(this).values(files_removed_at=sa.func.now()))
    of_it = events.c.analysis_id == analysis_id
    connection.execute(sa.update(events).where(of_it).values(thumbnail_key=None))
    return True


def remove_analysis(
    connection: sa.Connection, analysis_id: str, before: datetime, delete: DeleteFiles, *, earlier_only: bool
) -> bool:
    """Delete an analysis with its events and its files; the row last, because it names the files.

    Returns:
        Whether it was; it stays if it has been requested again or become current meanwhile.
    """
    due = _due(connection, analysis_id, _old(before), _earlier(earlier_only))
    if due is None:
        return False
    delete(due)
    connection.execute(sa.delete(analyses).where(analyses.c.analysis_id == analysis_id))
    return True


def _finished(before: datetime) -> sa.Select[Any]:
    final = video_status.c.state.in_(FINAL_STATES)
    return (
        sa.select(video_status.c.video_id)
        .group_by(video_status.c.video_id)
        .having(sa.func.max(video_status.c.uploaded_at) < before, sa.func.bool_and(final))
    )


def _due(
    connection: sa.Connection, analysis_id: str, *conditions: sa.ColumnElement[bool]
) -> OldAnalysis | None:
    """The analysis if it meets the conditions, once nothing else of its video can be published."""
    this = analyses.c.analysis_id == analysis_id
    # Publishing and rolling back hold this lock.
    of_video = videos.c.video_id == sa.select(analyses.c.video_id).where(this).scalar_subquery()
    connection.execute(sa.select(videos.c.video_id).where(of_video).with_for_update())
    other = analyses.alias("shares")
    shared = sa.exists().where(
        other.c.detection_id == analyses.c.detection_id, other.c.analysis_id != analysis_id
    )
    found = sa.select(analyses.c.analysis_id, analyses.c.detection_id, ~shared)
    row = connection.execute(found.where(this, *conditions)).tuples().first()
    return None if row is None else OldAnalysis(*row)


def _ids(connection: sa.Connection, *conditions: sa.ColumnElement[bool], most: int) -> list[str]:
    statement = (
        sa.select(analyses.c.analysis_id)
        .where(*conditions)
        .order_by(analyses.c.requested_at, analyses.c.analysis_id)
        .limit(most)
    )
    return list(connection.execute(statement).scalars())


def _old(before: datetime) -> sa.ColumnElement[bool]:
    return analyses.c.requested_at < before


def _earlier(only: bool) -> sa.ColumnElement[bool]:
    return ~analyses.c.is_current if only else sa.true()


def _with_files(before: datetime) -> sa.ColumnElement[bool]:
    other = analyses.alias("other")
    younger = sa.exists().where(
        other.c.detection_id == analyses.c.detection_id, other.c.requested_at >= before
    )
    return analyses.c.files_removed_at.is_(None) & ~younger
