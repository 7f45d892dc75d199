"""The table `erasures`: the audit record of each deletion of a video, which blocks new rows while it is open.

Each function needs a transaction. Between :func:`begin_erasure` and :func:`finish_erasure` no upload of the
video is recorded and no analysis of it is published. The video's own rows are deleted last, in one
transaction with the end of the erasure: a repetition finds the rest by them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage.errors import StorageUnavailable
from capstone_dagster.storage.schema import analyses, erasures, events, outbox, video_status, videos

# What belongs to a video, in the order of references, so that each deleted row is counted.
_OF_VIDEO = (outbox, events, analyses, video_status, videos)


class ErasureUnderWay(StorageUnavailable):
    """The video is being deleted: nothing of it is recorded or published. Transient: retry."""


@dataclass(frozen=True, slots=True)
class VideoRows:
    """What the event store holds of a video.

    Attributes:
        analyses: analysis id → detection id.
        run_ids: of all runs that its rows name.
        counts: how many rows there are, by table.
    """

    video_id: str
    bucket: str
    key: str
    uploads: tuple[str, ...]
    analyses: Mapping[str, str]
    run_ids: frozenset[str]
    counts: Mapping[str, int]
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Erasure:
    """A row of `erasures`."""

    erasure_id: int
    requested_by: str
    begun_at: datetime
    finished_at: datetime | None
    counts: Mapping[str, int]


def video_hash(video_id: str) -> str:
    """How the audit record identifies a video without naming it."""
    return sha256(video_id.encode()).hexdigest()


def refuse_if_under_way(connection: sa.Connection, video_id: str) -> None:
    """Refuse new rows of a video that is being deleted; the caller holds the lock on the video's row.

    Raises:
        ErasureUnderWay: it is.
    """
    under_way = sa.select(erasures.c.erasure_id).where(
        erasures.c.video_hash == video_hash(video_id), erasures.c.finished_at.is_(None)
    )
    if connection.execute(under_way).first() is not None:
        raise ErasureUnderWay(
            f"{video_id} is being deleted. If that was interrupted, `capstone delete {video_id}` finishes it."
        )


def find_rows(connection: sa.Connection, video_id: str) -> VideoRows | None:
    """What the event store holds of a video; None if nothing."""
    video = connection.execute(sa.select(videos).where(videos.c.video_id == video_id)).first()
    if video is None:
        return None
    uploads = connection.execute(
        sa.select(video_status.c.upload_id, video_status.c.run_id).where(video_status.c.video_id == video_id)
    ).all()
    own = connection.execute(
        sa.select(analyses.c.analysis_id, analyses.c.detection_id, analyses.c.run_id).where(
            analyses.c.video_id == video_id
        )
    ).all()
    counted = {
        table.name: sa.select(sa.func.count()).where(table.c.video_id == video_id) for table in _OF_VIDEO
    }
    return VideoRows(
        video_id=video_id,
        bucket=video.bucket,
        key=video.key,
        uploads=tuple(row.upload_id for row in uploads),
        analyses={row.analysis_id: row.detection_id for row in own},
        run_ids=frozenset(row.run_id for row in [*uploads, *own] if row.run_id),
        counts={name: connection.execute(count).scalar_one() for name, count in counted.items()},
        external_id=video.external_id,
    )


def shared_detections(
    connection: sa.Connection,
    video_id: str,
    detection_ids: Collection[str],
    users: Mapping[str, Collection[str]],
) -> frozenset[str]:
    """Those of the detections that another video, which stays, needs.

    Args:
        users: detections → videos whose runs use them: an analysis that is still to be published has no row
            yet.
    """
    named = {each for using in users.values() for each in using} - {video_id}
    stay = sa.select(videos.c.video_id).where(videos.c.video_id.in_(named), ~_going(videos))
    staying = set(connection.execute(stay).scalars())
    used = {each for each in detection_ids if staying.intersection(users.get(each, ()))}
    of_others = sa.select(analyses.c.detection_id).where(
        analyses.c.detection_id.in_(detection_ids), analyses.c.video_id != video_id, ~_going(analyses)
    )
    return frozenset(connection.execute(of_others).scalars()) | used


def last_erasure(connection: sa.Connection, video_id: str) -> Erasure | None:
    """The last erasure of a video, finished or not; None if it was never deleted."""
    statement = (
        sa.select(erasures)
        .where(erasures.c.video_hash == video_hash(video_id))
        .order_by(erasures.c.begun_at.desc())
        .limit(1)
    )
    row = connection.execute(statement).first()
    if row is None:
        return None
    return Erasure(row.erasure_id, row.requested_by, row.begun_at, row.finished_at, row.counts)


def begin_erasure(connection: sa.Connection, video_id: str, requested_by: str) -> int:
    """Open an erasure, or find one that was interrupted; its id."""
    # Recording and publishing hold this lock, and look for an open erasure under it.
    lock = sa.select(videos.c.video_id).where(videos.c.video_id == video_id).with_for_update()
    connection.execute(lock)
    hashed = video_hash(video_id)
    connection.execute(
        insert(erasures)
        .values(video_hash=hashed, requested_by=requested_by)
        .on_conflict_do_nothing(index_elements=["video_hash"], index_where=erasures.c.finished_at.is_(None))
    )
    opened = sa.select(erasures.c.erasure_id).where(
        erasures.c.video_hash == hashed, erasures.c.finished_at.is_(None)
    )
    return int(connection.execute(opened).scalar_one())


def add_removed(connection: sa.Connection, erasure_id: int, removed: Mapping[str, int]) -> dict[str, int]:
    """Add to an erasure's record what was removed by now; all that it removed."""
    this = erasures.c.erasure_id == erasure_id
    counts: dict[str, int] = dict(
        connection.execute(sa.select(erasures.c.counts).where(this).with_for_update()).scalar_one()
    )
    for what, number in removed.items():
        if number:
            counts[what] = counts.get(what, 0) + number
    connection.execute(sa.update(erasures).where(this).values(counts=counts))
    return counts


def finish_erasure(connection: sa.Connection, erasure_id: int, video_id: str) -> Mapping[str, int]:
    """Delete the video's rows and close the erasure; all that it removed."""
    removed = {
        f"rows of {table.name}": connection.execute(
            sa.delete(table).where(table.c.video_id == video_id)
        ).rowcount
        for table in _OF_VIDEO
    }
    counts = add_removed(connection, erasure_id, removed)
    this = erasures.c.erasure_id == erasure_id
    connection.execute(sa.update(erasures).where(this).values(finished_at=sa.func.now()))
    return counts


def _going(table: sa.Table) -> sa.ColumnElement[bool]:
    """Whether a row's video is being deleted: of two such videos, neither keeps files for the other."""
    hashed = sa.func.encode(sa.func.sha256(sa.func.convert_to(table.c.video_id, "UTF8")), "hex")
    return sa.exists().where(erasures.c.video_hash == hashed, erasures.c.finished_at.is_(None))
