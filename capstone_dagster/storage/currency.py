"""Which of a video's analyses is current, when somebody says so: the way back to an earlier one.

Takes the connection of a transaction that its caller ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from capstone_dagster.storage import status
from capstone_dagster.storage.database import DatabaseError
from capstone_dagster.storage.schema import analyses, video_status, videos


class NotRolledBack(DatabaseError):
    """This analysis cannot become the video's current one; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """What rolling back did.

    Attributes:
        analysis_id: what is current now.
        replaced: what was current before; None if nothing was, and itself if nothing changed.
        events: how many consumers see now.
    """

    analysis_id: str
    replaced: str | None
    events: int

    @property
    def changed(self) -> bool:
        """Whether another analysis was current before."""
        return self.replaced != self.analysis_id


def roll_back(connection: sa.Connection, video_id: str, analysis_id: str) -> Rollback:
    """Make an analysis the current one, because it was asked for just now.

    Current is what was asked for last. So it is noted as asked for now: what was asked for before and comes
    late, or comes again, leaves it current, and what is asked for from now on replaces it.

    Raises:
        NotRolledBack: it is none of this video's, or of an upload that has been overwritten since.
    """
    # The same lock as publishing takes, so that neither sees half of the other.
    known = sa.select(videos.c.video_id).where(videos.c.video_id == video_id).with_for_update()
    latest = status.latest(connection, video_id) if connection.execute(known).first() else None
    if latest is None:
        raise NotRolledBack(f"There is no video {video_id!r}: it was deleted meanwhile.")
    of_video = analyses.c.video_id == video_id
    this = analyses.c.analysis_id == analysis_id
    row = connection.execute(sa.select(analyses).where(of_video, this)).mappings().first()
    if row is None:
        raise NotRolledBack(
            f"There is no analysis {analysis_id} of {video_id}. `capstone analyses {video_id}` lists them."
        )
    current = connection.execute(
        sa.select(analyses.c.analysis_id, video_status.c.upload_id)
        .join(video_status, video_status.c.upload_id == analyses.c.upload_id)
        .where(of_video, analyses.c.is_current)
    ).first()
    # Without a current analysis there is nothing that a newer upload's could be hidden by.
    upload_id = latest["upload_id"] if current is None else current.upload_id
    if row["upload_id"] != upload_id:
        raise NotRolledBack(
            f"Analysis {analysis_id} is of another upload of {video_id} than the current one: its events "
            "are of a video that has been overwritten since. Upload that one again to see them."
        )
    now = sa.func.clock_timestamp()
    asked_last = sa.select(
        sa.func.greatest(now, sa.func.max(analyses.c.requested_at) + sa.text("interval '1 microsecond'"))
    ).where(of_video)
    connection.execute(sa.update(analyses).where(this).values(requested_at=asked_last.scalar_subquery()))
    replaced = None if current is None else current.analysis_id
    if replaced != analysis_id:
        # Two statements, because a unique index is checked row by row within one.
        connection.execute(
            sa.update(analyses).where(of_video, analyses.c.is_current).values(is_current=False)
        )
        connection.execute(sa.update(analyses).where(this).values(is_current=True))
        payload = {"analysis_id": analysis_id, "events": row["events"], "current": True}
        status.notify(connection, "video.analyzed", upload_id, video_id, payload)
    return Rollback(analysis_id=analysis_id, replaced=replaced, events=row["events"])
