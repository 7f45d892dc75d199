"""The statements on `video_status` and `outbox`: one row an upload, and the notices of what became of it.

Each takes the connection of a transaction that its caller ends.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage.records import VideoUpload
from capstone_dagster.storage.schema import (
    FINAL_STATES,
    UNFINISHED_STATES,
    analyses,
    outbox,
    video_status,
)

# JSON as PostgreSQL takes it; ensure_ascii off keeps keys in any script readable in psql.
_json = partial(json.dumps, ensure_ascii=False, default=str)

# Any constant will do, as long as nobody else takes advisory locks of two numbers by it.
_NOTICES_LOCK = 7_001

# Of uploads within one second, which is all that S3's clock tells apart, the one recorded later is later.
LATEST_FIRST = (video_status.c.uploaded_at.desc(), video_status.c.recorded_order.desc())


def receive(connection: sa.Connection, upload: VideoUpload) -> bool:
    """Give an upload its row; whether it is a new one."""
    columns = ("upload_id", "video_id", "version_id", "etag", "size_bytes", "uploaded_at")
    statement = (
        insert(video_status)
        .values(state="received", **{name: getattr(upload, name) for name in columns})
        .on_conflict_do_nothing()
        .returning(video_status.c.upload_id)
    )
    if connection.execute(statement).first() is None:
        return False
    notify(connection, "video.received", upload.upload_id, upload.video_id, {})
    return True


def latest(connection: sa.Connection, video_id: str) -> Mapping[str, Any] | None:
    """The row of a video's latest upload."""
    statement = (
        sa.select(video_status).where(video_status.c.video_id == video_id).order_by(*LATEST_FIRST).limit(1)
    )
    row = connection.execute(statement).mappings().first()
    return None if row is None else dict(row)


def queue(connection: sa.Connection, run_ids: Mapping[str, str]) -> None:
    """Uploads (ids to run ids) move from `received` to `queued`."""
    statement = (
        sa.update(video_status)
        .where(video_status.c.upload_id == sa.bindparam("upload"), video_status.c.state == "received")
        .values(state="queued", run_id=sa.bindparam("run"), updated_at=sa.func.now())
    )
    connection.execute(statement, [{"upload": upload, "run": run} for upload, run in run_ids.items()])


def wait(connection: sa.Connection, upload_id: str, run_id: str, reason: str) -> bool:
    """A run waits for a machine, for this reason; whether the row was told."""
    conditions = [
        video_status.c.upload_id == upload_id,
        video_status.c.run_id == run_id,
        video_status.c.state.in_(("queued", "waiting-for-compute")),
        sa.or_(video_status.c.message.is_(None), video_status.c.message != reason),
    ]
    return _change(connection, *conditions, state="waiting-for-compute", message=reason) is not None


def hand_over(connection: sa.Connection, upload_id: str, run_id: str, successor: str) -> bool:
    """A run's retry takes its unfinished upload over; whether the row changed."""
    conditions = _unfinished(upload_id, run_id)
    return _change(connection, *conditions, state="queued", message=None, run_id=successor) is not None


def states(connection: sa.Connection, upload_ids: Collection[str]) -> dict[str, str]:
    """Upload id → state, of those uploads that are known."""
    statement = sa.select(video_status.c.upload_id, video_status.c.state).where(
        video_status.c.upload_id.in_(upload_ids)
    )
    return dict(connection.execute(statement).tuples().all())


def failed_by(connection: sa.Connection, run_ids: Collection[str]) -> list[Mapping[str, Any]]:
    """upload_id, video_id, failure_class of the uploads that failed last in one of these runs."""
    columns = (video_status.c[name] for name in ("upload_id", "video_id", "failure_class"))
    statement = sa.select(*columns).where(
        video_status.c.run_id.in_(run_ids), video_status.c.state == "failed"
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def requeue(connection: sa.Connection, upload_id: str, run_id: str, successor: str, message: str) -> bool:
    """The upload of a failed run is tried again by another one; whether the row changed."""
    conditions = [
        video_status.c.upload_id == upload_id,
        video_status.c.run_id == run_id,
        video_status.c.state.in_(("failed", *UNFINISHED_STATES)),
    ]
    changed = {"state": "queued", "failure_class": None, "message": message, "run_id": successor}
    return _change(connection, *conditions, **changed) is not None


def add_outlook(connection: sa.Connection, upload_id: str, run_id: str, outlook: str) -> bool:
    """Add to the message of a failed upload what follows; whether the row says so now, or did before."""
    conditions = [
        video_status.c.upload_id == upload_id,
        video_status.c.run_id == run_id,
        video_status.c.state == "failed",
    ]
    told = sa.func.coalesce(video_status.c.message, "")
    message = sa.case((sa.func.strpos(told, outlook) > 0, told), else_=sa.func.concat(told, " ", outlook))
    return _change(connection, *conditions, message=message) is not None


def run(connection: sa.Connection, upload_id: str, run_id: str, progress: float) -> None:
    """A run claims an upload (at progress 0), or tells how far it is if it has it still."""
    conditions = [video_status.c.upload_id == upload_id]
    if progress > 0:
        conditions += [video_status.c.run_id == run_id, video_status.c.state.not_in(FINAL_STATES)]
    _change(
        connection,
        *conditions,
        state="running",
        progress=progress,
        run_id=run_id,
        failure_class=None,
        message=None,
    )


def begin(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """A run that was waited for has its worker, which has told nothing yet; whether the row changed."""
    conditions = [
        video_status.c.upload_id == upload_id,
        video_status.c.run_id == run_id,
        video_status.c.state.in_(("queued", "waiting-for-compute")),
    ]
    return _change(connection, *conditions, state="running", message=None) is not None


def settle(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """A run is over that has published nothing, as one of the detections alone; whether the row changed."""
    published = connection.execute(
        sa.select(sa.exists().where(analyses.c.upload_id == upload_id))
    ).scalar_one()
    changed = {"state": "done", "progress": 1.0, "message": None}
    if not published:
        told = "Its last run published no events, only what comes before them: materialize `events`."
        changed = {"state": "received", "progress": 0.0, "message": told}
    return _change(connection, *_unfinished(upload_id, run_id), **changed) is not None


def fail(
    connection: sa.Connection,
    upload_id: str,
    run_id: str,
    failure_class: str,
    message: str,
    *,
    only_if_unfinished: bool,
    tried_again: bool,
) -> bool:
    """A run of an upload failed; whether the row says so now."""
    # A run that an operator has ended may fail of that.
    cancelled = sa.and_(video_status.c.state == "cancelled", video_status.c.run_id == run_id)
    conditions = [video_status.c.upload_id == upload_id, sa.not_(cancelled)]
    if only_if_unfinished:
        conditions = _unfinished(upload_id, run_id)
    video_id = _change(
        connection,
        *conditions,
        state="failed",
        failure_class=failure_class,
        message=message,
        run_id=run_id,
    )
    if video_id is None:
        return False
    payload = {
        "failure_class": failure_class,
        "message": message,
        "tried_again": tried_again,
        "run_id": run_id,
    }
    notify(connection, "video.failed", upload_id, video_id, payload)
    return True


def give_up(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """Tell that a failed upload is not tried again, where the last notice said that it would be.

    Returns:
        Whether there was somebody to tell.
    """
    row = connection.execute(
        sa.select(video_status.c.video_id, video_status.c.message)
        .where(
            video_status.c.upload_id == upload_id,
            video_status.c.run_id == run_id,
            video_status.c.state == "failed",
        )
        .with_for_update()
    ).first()
    last = connection.execute(
        sa.select(outbox.c.kind, outbox.c.payload)
        .where(outbox.c.upload_id == upload_id)
        .order_by(outbox.c.notice_id.desc())
        .limit(1)
    ).first()
    if row is None or last is None or last.kind != "video.failed" or not last.payload["tried_again"]:
        return False
    payload = {
        "failure_class": last.payload["failure_class"],
        "message": row.message,
        "tried_again": False,
        "run_id": run_id,
    }
    notify(connection, "video.failed", upload_id, row.video_id, payload)
    return True


def supersede(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """The object was overwritten before its run read it; whether the row says so now."""
    ours = sa.or_(video_status.c.run_id == run_id, video_status.c.state != "done")
    video_id = _change(
        connection,
        video_status.c.upload_id == upload_id,
        ours,
        state="superseded",
        failure_class=None,
        message="It was overwritten by a newer upload before it could be read; that one has its own run.",
        run_id=run_id,
    )
    return video_id is not None


def cancel(connection: sa.Connection, upload_id: str, run_id: str, message: str | None) -> None:
    """An operator ended the run."""
    conditions = _unfinished(upload_id, run_id)
    _change(connection, *conditions, state="cancelled", message=message, run_id=run_id)


def cancel_upload(connection: sa.Connection, upload_id: str, message: str) -> bool:
    """An operator wants no analysis of it, whichever run had it last; whether the row says so now."""
    conditions = [
        video_status.c.upload_id == upload_id,
        video_status.c.state.not_in(("done", "superseded", "cancelled")),
    ]
    changed = {"state": "cancelled", "failure_class": None, "message": message}
    return _change(connection, *conditions, **changed) is not None


def finish(connection: sa.Connection, upload_id: str, run_id: str, *, anew: bool) -> bool:
    """An analysis of the upload is published; whether the row changed.

    Args:
        anew: something was published just now, so that the row names this run even if it said `done`.
    """
    conditions = [video_status.c.upload_id == upload_id]
    if not anew:
        conditions.append(video_status.c.state != "done")
    changed = {"state": "done", "progress": 1.0, "failure_class": None, "message": None, "run_id": run_id}
    return _change(connection, *conditions, **changed) is not None


def unfinished_runs(connection: sa.Connection) -> list[tuple[str, str]]:
    """(upload id, run id) of the uploads whose run is not over, as far as their rows know."""
    statement = (
        sa.select(video_status.c.upload_id, video_status.c.run_id)
        .where(video_status.c.state.in_(UNFINISHED_STATES), video_status.c.run_id.is_not(None))
        .order_by(video_status.c.recorded_order)
    )
    return [(upload_id, run_id) for upload_id, run_id in connection.execute(statement)]


def notify(
    connection: sa.Connection, kind: str, upload_id: str, video_id: str, payload: Mapping[str, Any]
) -> None:
    """Put a notice into the outbox; it is sent when, and only if, the transaction is committed.

    Until then others with a notice of the video wait: numbers rise in the order in which they can be sent.
    """
    # Not the video's row: a run that tells of its failure has no other business with it.
    lock = sa.func.pg_advisory_xact_lock(_NOTICES_LOCK, sa.func.hashtext(video_id))
    connection.execute(sa.select(lock))
    notice = {"kind": kind, "video_id": video_id, "upload_id": upload_id, **payload}
    connection.execute(
        insert(outbox).values(
            kind=kind, video_id=video_id, upload_id=upload_id, payload=json.loads(_json(notice))
        )
    )


def _change(connection: sa.Connection, *conditions: sa.ColumnElement[bool], **values: Any) -> str | None:
    """Change one row if it meets the conditions; the id of its video if it did."""
    statement = (
        sa.update(video_status)
        .where(*conditions)
        .values(updated_at=sa.func.now(), **values)
        .returning(video_status.c.video_id)
    )
    return connection.execute(statement).scalar()


def _unfinished(upload_id: str, run_id: str) -> list[sa.ColumnElement[bool]]:
    """The upload's row, if it is not final and no other run has it."""
    return [
        video_status.c.upload_id == upload_id,
        video_status.c.state.not_in(FINAL_STATES),
        sa.or_(video_status.c.run_id == run_id, video_status.c.run_id.is_(None)),
    ]
