"""The statements on `outbox` for whoever sends it: what is due, what became of it, what may go.

Each takes the connection of a transaction that its caller ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa

from capstone_dagster.storage.records import Backlog, Notice
from capstone_dagster.storage.schema import outbox, video_status, videos

# A notice that is refused while others are taken: the first seconds are for what passes, ten minutes are a
# bound on what a poisoned one costs, and on how late it leaves once somebody has mended its cause.
_AGAIN_S = 5
_AGAIN_LIMIT_S = 600
_MOST_DOUBLINGS = 7  # 5 s, 10 s, … 640 s
_PRUNED_AT_ONCE = 5_000


def take(connection: sa.Connection, most: int) -> list[Notice]:
    """The oldest unsent notice of each video, if it is due, locked until the transaction ends.

    Locking the first one locks its video: what follows it is not the first before it is sent, so that two
    senders neither send the same at once nor overtake each other.
    """
    earlier = outbox.alias("earlier")
    first = ~sa.exists().where(
        earlier.c.video_id == outbox.c.video_id,
        earlier.c.notice_id < outbox.c.notice_id,
        earlier.c.sent_at.is_(None),
    )
    statement = (
        sa.select(
            *(outbox.c[name] for name in ("notice_id", "kind", "video_id", "upload_id", "payload")),
            *(outbox.c[name] for name in ("created_at", "refusals")),
            *(videos.c[name] for name in ("external_id", "bucket", "key", "camera", "recorded_at")),
            video_status.c.uploaded_at,
        )
        .join_from(outbox, videos, videos.c.video_id == outbox.c.video_id, isouter=True)
        .join(video_status, video_status.c.upload_id == outbox.c.upload_id, isouter=True)
        .where(
            outbox.c.sent_at.is_(None),
            sa.or_(outbox.c.try_at.is_(None), outbox.c.try_at <= sa.func.now()),
            first,
        )
        .order_by(outbox.c.notice_id)
        .limit(most)
        .with_for_update(of=outbox, skip_locked=True)
    )
    return [Notice(**row) for row in connection.execute(statement).mappings()]


def sent(connection: sa.Connection, notice_ids: Collection[int]) -> None:
    """Notices that SNS has taken."""
    if notice_ids:
        values = {"sent_at": sa.func.clock_timestamp(), "refusal": None, "try_at": None}
        connection.execute(sa.update(outbox).where(outbox.c.notice_id.in_(notice_ids)).values(values))


def refused(connection: sa.Connection, refusals: Mapping[int, str]) -> None:
    """Notices (ids to reasons) that SNS refused while it answered: each is tried again, less and less."""
    doubled = sa.func.power(2, sa.func.least(outbox.c.refusals, _MOST_DOUBLINGS))
    again = sa.func.least(_AGAIN_S * doubled, _AGAIN_LIMIT_S) * sa.literal(timedelta(seconds=1), sa.Interval)
    for notice_id, reason in refusals.items():
        values = {
            "refusals": outbox.c.refusals + 1,
            "refusal": reason,
            "try_at": sa.func.clock_timestamp() + again,
        }
        connection.execute(sa.update(outbox).where(outbox.c.notice_id == notice_id).values(values))


def backlog(connection: sa.Connection) -> Backlog:
    """How much waits, since when, and what was refused last."""
    unsent = outbox.c.sent_at.is_(None)
    counted = sa.select(
        sa.func.count(), sa.func.min(outbox.c.created_at), sa.func.count(outbox.c.refusal)
    ).where(unsent)
    waiting, oldest, held = connection.execute(counted).one()
    last = (
        sa.select(outbox.c.refusal)
        .where(unsent, outbox.c.refusal.is_not(None))
        .order_by(outbox.c.try_at.desc())
        .limit(1)
    )
    return Backlog(waiting, oldest, held, connection.execute(last).scalar())


def oldest(connection: sa.Connection) -> datetime | None:
    """When the oldest unsent notice was written; None if all are sent."""
    statement = (
        sa.select(outbox.c.created_at).where(outbox.c.sent_at.is_(None)).order_by(outbox.c.notice_id).limit(1)
    )
    return connection.execute(statement).scalar()


def prune(connection: sa.Connection, days: int) -> int:
    """Delete notices that were sent more than so many days ago, some thousands at once; how many went."""
    old = (
        sa.select(outbox.c.notice_id)
        .where(outbox.c.sent_at < sa.func.now() - timedelta(days=days))
        .order_by(outbox.c.sent_at)
        .limit(_PRUNED_AT_ONCE)
    )
    return connection.execute(sa.delete(outbox).where(outbox.c.notice_id.in_(old))).rowcount
