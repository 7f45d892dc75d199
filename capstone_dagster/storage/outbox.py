"""The table `outbox`: notices to other systems, written with what they report and sent in order.

Each function needs a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage.schema import outbox, video_status, videos

# A notice that is refused while others are taken: the first seconds are for passing causes; ten minutes bound
# what a poisoned notice costs, and how late it leaves once its cause is mended.
_AGAIN_S = 5
_AGAIN_LIMIT_S = 600
_MOST_DOUBLINGS = 7  # 5 s, 10 s, … 640 s
_PRUNED_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice in the outbox, with what is known of its video now.

    Attributes:
        kind: `video.received`, `video.analyzed`, `video.failed` or `video.watched`.
        payload: what was known when it was written.
        created_at: when what it reports became true.
        refusals: how often SNS has refused it.
        external_id, bucket, key, camera, recorded_at, uploaded_at: None if the video was deleted since.
    """

    notice_id: int
    kind: str
    video_id: str
    upload_id: str
    payload: Mapping[str, Any]
    created_at: datetime
    refusals: int
    external_id: str | None
    bucket: str | None
    key: str | None
    camera: str | None
    recorded_at: datetime | None
    uploaded_at: datetime | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the outbox.

    Attributes:
        waiting: notices that are not sent.
        oldest: when the first of them was written.
        refused: how many of them SNS has refused at least once while it answered.
        refusal: why, of the one that was refused last.
    """

    waiting: int
    oldest: datetime | None
    refused: int
    refusal: str | None


def notify(
    connection: sa.Connection, kind: str, upload_id: str, video_id: str, payload: Mapping[str, Any]
) -> None:
    """Queue a notice; it is sent when, and only if, the transaction is committed.

    The caller has locked the video's row, before any other row of the video: until it commits, other notices
    of the video wait, so that numbers rise in the order in which notices can be sent.
    """
    notice = {"kind": kind, "video_id": video_id, "upload_id": upload_id, **payload}
    # JSON as PostgreSQL takes it; ensure_ascii off keeps keys in any script readable in psql.
    plain = json.loads(json.dumps(notice, ensure_ascii=False, default=str))
    connection.execute(
        insert(outbox).values(kind=kind, video_id=video_id, upload_id=upload_id, payload=plain)
    )


def send_notices(
    connection: sa.Connection,
    send: Callable[[Sequence[Notice]], Mapping[int, str]],
    *,
    most: int,
    kind: str | None = None,
) -> tuple[int, dict[int, str]]:
    """Pass the first unsent notice of each video to `send`, and store the outcome.

    The notices are locked meanwhile: another process that calls this takes others. If `send` raises, or this
    process dies in between, nothing is stored, and they are sent once more.

    Args:
        send: takes them, at most `most`; returns those that were refused, ids to reasons.
        kind: only notices of this kind, which then wait for no others.

    Returns:
        How many were sent, and those that were refused.
    """
    taken = _take(connection, most, kind)
    if not taken:
        return 0, {}
    refused = dict(send(taken))
    _mark_sent(connection, [each.notice_id for each in taken if each.notice_id not in refused])
    _mark_refused(connection, refused)
    return len(taken) - len(refused), refused


def outbox_backlog(connection: sa.Connection) -> Backlog:
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


def prune_notices(connection: sa.Connection, *, days: int) -> int:
    """Delete notices that were sent more than this many days ago, some thousands a call; how many."""
    old = (
        sa.select(outbox.c.notice_id)
        .where(outbox.c.sent_at < sa.func.now() - timedelta(days=days))
        .order_by(outbox.c.sent_at)
        .limit(_PRUNED_AT_ONCE)
    )
    return connection.execute(sa.delete(outbox).where(outbox.c.notice_id.in_(old))).rowcount


def _take(connection: sa.Connection, most: int, kind: str | None) -> list[Notice]:
    """The oldest unsent notice of each video, if it is due, locked until the transaction ends.

    Locking the first one locks its video: what follows it is not the first before it is sent, so that two
    senders neither send the same at once nor overtake each other.
    """
    earlier = outbox.alias("earlier")
    first = ~sa.exists().where(
        earlier.c.video_id == outbox.c.video_id,
        earlier.c.notice_id < outbox.c.notice_id,
        earlier.c.sent_at.is_(None),
        earlier.c.kind == kind if kind else sa.true(),
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
            outbox.c.kind == kind if kind else sa.true(),
            first,
        )
        .order_by(outbox.c.notice_id)
        .limit(most)
        .with_for_update(of=outbox, skip_locked=True)
    )
    return [Notice(**row) for row in connection.execute(statement).mappings()]


def _mark_sent(connection: sa.Connection, notice_ids: Collection[int]) -> None:
    """Notices that SNS has taken."""
    if notice_ids:
        values = {"sent_at": sa.func.clock_timestamp(), "refusal": None, "try_at": None}
        connection.execute(sa.update(outbox).where(outbox.c.notice_id.in_(notice_ids)).values(values))


def _mark_refused(connection: sa.Connection, refusals: Mapping[int, str]) -> None:
    """Notices (ids to reasons) that SNS refused while it answered: each is retried at growing intervals."""
    doubled = sa.func.power(2, sa.func.least(outbox.c.refusals, _MOST_DOUBLINGS))
    again = sa.func.least(_AGAIN_S * doubled, _AGAIN_LIMIT_S) * sa.literal(timedelta(seconds=1), sa.Interval)
    for notice_id, reason in refusals.items():
        values = {
            "refusals": outbox.c.refusals + 1,
            "refusal": reason,
            "try_at": sa.func.clock_timestamp() + again,
        }
        connection.execute(sa.update(outbox).where(outbox.c.notice_id == notice_id).values(values))
