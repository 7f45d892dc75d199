"""The rows of a video that is being deleted: what there is, the fence meanwhile, and the line that remains.

From :meth:`Erasures.begin` to :meth:`Erasures.finish` nobody records an upload of the video or publishes an
analysis of it. Its own rows go last, in one transaction with the end of that fence: by them a repetition
finds the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage.database import database_errors
from capstone_dagster.storage.errors import StorageUnavailable
from capstone_dagster.storage.schema import analyses, erasures, events, outbox, video_status, videos


class ErasureUnderWay(StorageUnavailable):
    """The video is being deleted just now: nothing of it is recorded or published. Passing: try again."""


@dataclass(frozen=True, slots=True)
class VideoRows:
    """What the event store holds of a video.

    Attributes:
        analyses: analysis id → detection id.
        shared: those of the detections that another video's analysis rests on.
        run_ids: of all runs that it names.
        counts: how many rows there are, by table.
    """

    video_id: str
    bucket: str
    key: str
    uploads: tuple[str, ...]
    analyses: Mapping[str, str]
    shared: frozenset[str]
    run_ids: frozenset[str]
    counts: Mapping[str, int]
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Erasure:
    """A line of `erasures`."""

    erasure_id: int
    requested_by: str
    begun_at: datetime
    finished_at: datetime | None
    counts: Mapping[str, int]


def video_hash(video_id: str) -> str:
    """What the audit line knows a video by."""
    return sha256(video_id.encode()).hexdigest()


def refuse_if_under_way(connection: sa.Connection, video_id: str) -> None:
    """Keep what is being deleted from growing again; the caller holds the lock on the video's row.

    Raises:
        ErasureUnderWay: it is.
    """
    under_way = sa.select(erasures.c.erasure_id).where(
        erasures.c.video_hash == video_hash(video_id), erasures.c.finished_at.is_(None)
    )
    if connection.execute(under_way).first() is not None:
        raise ErasureUnderWay(
            f"{video_id} is being deleted. If that was broken off, `capstone delete {video_id}` finishes it."
        )


class Erasures:
    """The statements; every method raises the classes of :mod:`capstone_dagster.storage.database`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def find(self, video_id: str) -> VideoRows | None:
        """What there is of a video; None if nothing is."""
        with database_errors(self._engine), self._engine.connect() as connection:
            video = connection.execute(sa.select(videos).where(videos.c.video_id == video_id)).first()
            if video is None:
                return None
            uploads = connection.execute(
                sa.select(video_status.c.upload_id, video_status.c.run_id).where(
                    video_status.c.video_id == video_id
                )
            ).all()
            own = connection.execute(
                sa.select(analyses.c.analysis_id, analyses.c.detection_id, analyses.c.run_id).where(
                    analyses.c.video_id == video_id
                )
            ).all()
            counts = {
                table.name: connection.execute(
                    sa.select(sa.func.count()).where(table.c.video_id == video_id)
                ).scalar_one()
                for table in (videos, video_status, analyses, events, outbox)
            }
            detections = {row.detection_id for row in own}
            return VideoRows(
                video_id=video_id,
                bucket=video.bucket,
                key=video.key,
                uploads=tuple(row.upload_id for row in uploads),
                analyses={row.analysis_id: row.detection_id for row in own},
                shared=_shared(connection, video_id, detections),
                run_ids=frozenset(row.run_id for row in [*uploads, *own] if row.run_id),
                counts=counts,
                external_id=video.external_id,
            )

    def shared(
        self, video_id: str, detection_ids: frozenset[str], users: Mapping[str, Collection[str]]
    ) -> frozenset[str]:
        """Those of the detections that another video, which stays, needs.

        Args:
            users: detections → videos whose runs go by them: an analysis that is still to be published
                is no row yet.
        """
        named = {each for videos_ in users.values() for each in videos_} - {video_id}
        with database_errors(self._engine), self._engine.connect() as connection:
            stay = sa.select(videos.c.video_id).where(videos.c.video_id.in_(named), ~_going(videos))
            staying = set(connection.execute(stay).scalars())
            used = {each for each in detection_ids if staying.intersection(users.get(each, ()))}
            return _shared(connection, video_id, detection_ids) | used

    def last(self, video_id: str) -> Erasure | None:
        """The last erasure of a video, finished or not; None if it was never deleted."""
        statement = (
            sa.select(erasures)
            .where(erasures.c.video_hash == video_hash(video_id))
            .order_by(erasures.c.begun_at.desc())
            .limit(1)
        )
        with database_errors(self._engine), self._engine.connect() as connection:
            row = connection.execute(statement).first()
        if row is None:
            return None
        return Erasure(row.erasure_id, row.requested_by, row.begun_at, row.finished_at, row.counts)

    def begin(self, video_id: str, requested_by: str) -> int:
        """Put up the fence, or find the one of an erasure that was broken off; the id of its line."""
        with database_errors(self._engine), self._engine.begin() as connection:
            # Whoever records or publishes holds this lock, and looks at the fence under it.
            lock = sa.select(videos.c.video_id).where(videos.c.video_id == video_id).with_for_update()
            connection.execute(lock)
            hashed = video_hash(video_id)
            connection.execute(
                insert(erasures)
                .values(video_hash=hashed, requested_by=requested_by)
                .on_conflict_do_nothing(
                    index_elements=["video_hash"], index_where=erasures.c.finished_at.is_(None)
                )
            )
            open_line = sa.select(erasures.c.erasure_id).where(
                erasures.c.video_hash == hashed, erasures.c.finished_at.is_(None)
            )
            return int(connection.execute(open_line).scalar_one())

    def note(self, erasure_id: int, removed: Mapping[str, int]) -> None:
        """Add to the line what was removed by now."""
        with database_errors(self._engine), self._engine.begin() as connection:
            _add(connection, erasure_id, removed)

    def finish(self, erasure_id: int, video_id: str) -> Mapping[str, int]:
        """Delete the rows and end the fence, in one transaction; all that the erasure removed."""
        with database_errors(self._engine), self._engine.begin() as connection:
            removed = {
                f"rows of {table.name}": connection.execute(
                    sa.delete(table).where(table.c.video_id == video_id)
                ).rowcount
                # In the order of their references, so that each is counted.
                for table in (outbox, events, analyses, video_status, videos)
            }
            counts = _add(connection, erasure_id, removed)
            this = erasures.c.erasure_id == erasure_id
            connection.execute(sa.update(erasures).where(this).values(finished_at=sa.func.now()))
        return counts


def _shared(
    connection: sa.Connection, video_id: str, detection_ids: set[str] | frozenset[str]
) -> frozenset[str]:
    statement = sa.select(analyses.c.detection_id).where(
        analyses.c.detection_id.in_(detection_ids), analyses.c.video_id != video_id, ~_going(analyses)
    )
    return frozenset(connection.execute(statement).scalars())


def _going(table: sa.Table) -> sa.ColumnElement[bool]:
    """Whether a row's video is being deleted: of two that are, neither keeps files for the other."""
    hashed = sa.func.encode(sa.func.sha256(sa.func.convert_to(table.c.video_id, "UTF8")), "hex")
    return sa.exists().where(erasures.c.video_hash == hashed, erasures.c.finished_at.is_(None))


def _add(connection: sa.Connection, erasure_id: int, removed: Mapping[str, int]) -> dict[str, int]:
    this = erasures.c.erasure_id == erasure_id
    counts: dict[str, int] = dict(
        connection.execute(sa.select(erasures.c.counts).where(this).with_for_update()).scalar_one()
    )
    for what, number in removed.items():
        if number:
            counts[what] = counts.get(what, 0) + number
    connection.execute(sa.update(erasures).where(this).values(counts=counts))
    return counts
