"""Which rows are old enough to go, by the settings of retention; and that what belonged to them went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from capstone_dagster.storage.database import database_errors
from capstone_dagster.storage.schema import FINAL_STATES, analyses, events, video_status, videos


@dataclass(frozen=True, slots=True)
class OldAnalysis:
    """An analysis that is to go, or the files of which are.

    Attributes:
        alone: its detections go with it, because no other analysis that stays rests on them.
    """

    analysis_id: str
    detection_id: str
    alone: bool


DeleteFiles = Callable[[OldAnalysis], None]
"""Deletes the objects of an analysis; again does no harm."""


class OldRows:
    """The statements; every method raises the classes of :mod:`capstone_dagster.storage.database`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def videos_with_raw(self, before: datetime, most: int) -> list[tuple[str, str, str, datetime]]:
        """(video id, bucket, key, time of the last upload known) of finished videos that are to lose theirs.

        They were last uploaded before, and their raw object is there.
        """
        over = (
            sa.select(video_status.c.video_id)
            .group_by(video_status.c.video_id)
            .having(
                sa.func.max(video_status.c.uploaded_at) < before,
                sa.func.bool_and(video_status.c.state.in_(FINAL_STATES)),
            )
        )
        statement = (
            sa.select(videos.c.video_id, videos.c.bucket, videos.c.key, videos.c.uploaded_at)
            .where(videos.c.video_id.in_(over), videos.c.raw_removed_at.is_(None))
            .order_by(videos.c.uploaded_at)
            .limit(most)
        )
        with database_errors(self._engine), self._engine.connect() as connection:
            return list(connection.execute(statement).tuples())

    def raw_removed(self, video_id: str, until: datetime) -> None:
        """Its raw objects are gone, those of uploads up to then."""
        # What was uploaded meanwhile is there, and a newer upload's row says so itself.
        this = sa.and_(videos.c.video_id == video_id, videos.c.uploaded_at <= until)
        with database_errors(self._engine), self._engine.begin() as connection:
            connection.execute(sa.update(videos).where(this).values(raw_removed_at=sa.func.now()))

    def analyses_with_files(self, before: datetime, most: int) -> list[str]:
        """Ids of analyses asked for before, the files of which are there.

        Detections go when the youngest analysis that rests on them is old enough.
        """
        return self._ids(_old(before), _with_files(before), most=most)

    def analyses(self, before: datetime, most: int, *, earlier_only: bool) -> list[str]:
        """Ids of analyses asked for before.

        Args:
            earlier_only: leave out those that are current.
        """
        return self._ids(_old(before), _earlier(earlier_only), most=most)

    def remove_files(self, analysis_id: str, before: datetime, delete: DeleteFiles) -> bool:
        """Have an analysis's files deleted, the pictures of its events among them.

        Returns:
            Whether they went; they stay if the analysis has been asked for again meanwhile.
        """
        with self._removing(analysis_id, _old(before), _with_files(before)) as (connection, due):
            if due is None:
                return False
            delete(replace(due, alone=True))
            this = analyses.c.analysis_id == analysis_id
            connection.execute(sa.update(analyses).where(this).values(files_removed_at=sa.func.now()))
            of_it = events.c.analysis_id == analysis_id
            connection.execute(sa.update(events).where(of_it).values(thumbnail_key=None))
        return True

    def remove_analysis(
        self, analysis_id: str, before: datetime, delete: DeleteFiles, *, earlier_only: bool
    ) -> bool:
        """Delete an analysis with its events and its files; the row last, by which they are found.

        Returns:
            Whether it went; it stays if it has been asked for again or become current meanwhile.
        """
        with self._removing(analysis_id, _old(before), _earlier(earlier_only)) as (connection, due):
            if due is None:
                return False
            delete(due)
            connection.execute(sa.delete(analyses).where(analyses.c.analysis_id == analysis_id))
        return True

    @contextmanager
    def _removing(
        self, analysis_id: str, *conditions: sa.ColumnElement[bool]
    ) -> Iterator[tuple[sa.Connection, OldAnalysis | None]]:
        """A transaction in which nothing of the video is published, and what is due of it now."""
        this = analyses.c.analysis_id == analysis_id
        other = analyses.alias("shares")
        shared = sa.exists().where(
            other.c.detection_id == analyses.c.detection_id, other.c.analysis_id != analysis_id
        )
        with database_errors(self._engine), self._engine.begin() as connection:
            # Whoever publishes, or rolls back, holds this lock.
            of_video = videos.c.video_id == sa.select(analyses.c.video_id).where(this).scalar_subquery()
            connection.execute(sa.select(videos.c.video_id).where(of_video).with_for_update())
            found = sa.select(analyses.c.analysis_id, analyses.c.detection_id, ~shared)
            row = connection.execute(found.where(this, *conditions)).tuples().first()
            yield connection, None if row is None else OldAnalysis(*row)

    def _ids(self, *conditions: sa.ColumnElement[bool], most: int) -> list[str]:
        statement = (
            sa.select(analyses.c.analysis_id)
            .where(*conditions)
            .order_by(analyses.c.requested_at, analyses.c.analysis_id)
            .limit(most)
        )
        with database_errors(self._engine), self._engine.connect() as connection:
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
