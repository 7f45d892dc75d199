"""Which rows are old enough to go, by the settings of retention; and that what belonged to them went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from capstone_dagster.storage.database import database_errors
from capstone_dagster.storage.schema import FINAL_STATES, analyses, events, video_status, videos


@dataclass(frozen=True, slots=True)
class OldAnalysis:
    """An analysis that is to go, or the files of which are.

    Attributes:
        alone: no other analysis that stays rests on its detections.
    """

    analysis_id: str
    detection_id: str
    alone: bool


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

    def analyses_with_files(self, before: datetime, most: int) -> list[OldAnalysis]:
        """Analyses asked for before, the files of which are there.

        Detections go when the youngest analysis that rests on them is old enough.
        """
        other = analyses.alias("other")
        younger = sa.exists().where(
            other.c.detection_id == analyses.c.detection_id, other.c.requested_at >= before
        )
        there = sa.or_(
            analyses.c.files_removed_at.is_(None), analyses.c.files_removed_at < analyses.c.requested_at
        )
        statement = (
            sa.select(analyses.c.analysis_id, analyses.c.detection_id)
            .where(analyses.c.requested_at < before, there, ~younger)
            .order_by(analyses.c.requested_at)
            .limit(most)
        )
        with database_errors(self._engine), self._engine.connect() as connection:
            return [OldAnalysis(*row, alone=True) for row in connection.execute(statement).tuples()]

    def files_removed(self, analysis_ids: Sequence[str]) -> None:
        """Their files are gone, the pictures of their events among them."""
        with database_errors(self._engine), self._engine.begin() as connection:
            these = analyses.c.analysis_id.in_(analysis_ids)
            connection.execute(sa.update(analyses).where(these).values(files_removed_at=sa.func.now()))
            of_them = events.c.analysis_id.in_(analysis_ids)
            connection.execute(sa.update(events).where(of_them).values(thumbnail_key=None))

    def analyses(self, before: datetime, most: int, *, earlier_only: bool) -> list[OldAnalysis]:
        """Analyses asked for before.

        Args:
            earlier_only: leave out those that are current.
        """
        conditions: list[sa.ColumnElement[bool]] = [analyses.c.requested_at < before]
        if earlier_only:
            conditions.append(~analyses.c.is_current)
        statement = (
            sa.select(analyses.c.analysis_id, analyses.c.detection_id)
            .where(*conditions)
            .order_by(analyses.c.requested_at)
            .limit(most)
        )
        with database_errors(self._engine), self._engine.connect() as connection:
            found = list(connection.execute(statement).tuples())
            going = [analysis_id for analysis_id, _ in found]
            stays = sa.select(analyses.c.detection_id).where(
                analyses.c.detection_id.in_([detection_id for _, detection_id in found]),
                analyses.c.analysis_id.not_in(going),
            )
            needed = set(connection.execute(stays).scalars())
        return [OldAnalysis(*row, alone=row[1] not in needed) for row in found]

    def delete_analyses(self, analysis_ids: Sequence[str], *, earlier_only: bool) -> int:
        """Delete them with their events; how many went: none that became current meanwhile, if those stay."""
        conditions: list[sa.ColumnElement[bool]] = [analyses.c.analysis_id.in_(analysis_ids)]
        if earlier_only:
            conditions.append(~analyses.c.is_current)
        with database_errors(self._engine), self._engine.begin() as connection:
            return connection.execute(sa.delete(analyses).where(*conditions)).rowcount
