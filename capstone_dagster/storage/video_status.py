"""The table `video_status` (one row an upload) and its view `current_status`. Each function needs a
transaction.

A run changes an upload's row only while the upload is its own: functions that take a run id leave alone what
another run has taken over. Each function that changes one row returns whether it did.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.outbox import notify
from capstone_dagster.storage.schema import (
    FINAL_STATES,
    SCHEMA,
    STATES,
    UNFINISHED_STATES,
    analyses,
    outbox,
    video_status,
    videos,
)
from capstone_dagster.storage.uploads import VideoUpload


class UploadCancelled(StorageError):
    """An operator has cancelled the run's upload: the run stops and publishes nothing."""

    failure_class = "internal"


_OPEN = tuple(state for state in STATES if state not in FINAL_STATES)
# Of uploads within one second, which is the precision of S3's clock, the one recorded later is later.
LATEST_FIRST = (video_status.c.uploaded_at.desc(), video_status.c.recorded_order.desc())


def current_status(connection: sa.Connection, *videos: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of `current_status`, latest first, of all videos or of some (by id or external id)."""
    query = f"SELECT * FROM {SCHEMA}.current_status"
    if videos:
        query += " WHERE video_id = ANY(:videos) OR external_id = ANY(:videos)"
    query += " ORDER BY updated_at DESC, video_id"
    if limit is not None:
        query += " LIMIT :limit"
    parameters = {"videos": list(videos), "limit": limit}
    return [dict(row) for row in connection.execute(sa.text(query), parameters).mappings()]


def failed_uploads(
    connection: sa.Connection, failure_class: str | None = None, since: datetime | None = None
) -> list[dict[str, Any]]:
    """Rows of `current_status` of videos whose latest upload failed, oldest first.

    Args:
        failure_class: only of this class.
        since: only those whose row last changed at this time or later.
    """
    view = sa.table(
        "current_status",
        *(sa.column(name) for name in ("state", "failure_class", "updated_at", "video_id")),
        schema=SCHEMA,
    )
    statement = sa.select(sa.text("*")).select_from(view).where(view.c.state == "failed")
    if failure_class is not None:
        statement = statement.where(view.c.failure_class == failure_class)
    if since is not None:
        statement = statement.where(view.c.updated_at >= since)
    statement = statement.order_by(view.c.updated_at, view.c.video_id)
    return [dict(row) for row in connection.execute(statement).mappings()]


def add_upload(connection: sa.Connection, upload: VideoUpload) -> bool:
    """Add an upload's row and queue its notice; whether it is new."""
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
    return _first(connection, video_status.c.video_id == video_id)


def status_of_upload(connection: sa.Connection, upload_id: str) -> Mapping[str, Any] | None:
    """The row of one upload; None before intake."""
    return _first(connection, video_status.c.upload_id == upload_id)


def mark_queued(connection: sa.Connection, run_ids: Mapping[str, str]) -> None:
    """Uploads whose run is on record move from `received` to `queued`.

    Args:
        run_ids: upload id → run id.
    """
    if not run_ids:
        return
    statement = (
        sa.update(video_status)
        .where(video_status.c.upload_id == sa.bindparam("upload"), video_status.c.state == "received")
        .values(state="queued", run_id=sa.bindparam("run"), updated_at=sa.func.now())
    )
    connection.execute(statement, [{"upload": upload, "run": run} for upload, run in run_ids.items()])


def upload_states(connection: sa.Connection, upload_ids: Collection[str]) -> dict[str, str]:
    """Upload id → state, of those uploads that are known."""
    statement = sa.select(video_status.c.upload_id, video_status.c.state).where(
        video_status.c.upload_id.in_(upload_ids)
    )
    return dict(connection.execute(statement).tuples().all())


def uploads_failed_in(connection: sa.Connection, run_ids: Collection[str]) -> list[Mapping[str, Any]]:
    """upload_id, video_id, failure_class of the uploads that failed last in one of these runs."""
    columns = (video_status.c[name] for name in ("upload_id", "video_id", "failure_class"))
    statement = sa.select(*columns).where(
        video_status.c.run_id.in_(run_ids), video_status.c.state == "failed"
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def mark_waiting(connection: sa.Connection, upload_id: str, run_id: str, reason: str) -> bool:
    """The upload's run is launched and waits for a machine; no change if the row says so already."""
    new = sa.or_(video_status.c.message.is_(None), video_status.c.message != reason)
    waiting = _row(upload_id, run_id, ("queued", "waiting-for-compute"))
    return _change(connection, *waiting, new, state="waiting-for-compute", message=reason) is not None


def mark_begun(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """The run that the upload waits for has its worker, which has reported nothing yet."""
    waiting = _row(upload_id, run_id, ("queued", "waiting-for-compute"))
    return _change(connection, *waiting, state="running", message=None) is not None


def mark_running(connection: sa.Connection, upload_id: str, run_id: str, progress: float = 0.0) -> bool:
    """A run works on the upload.

    Args:
        progress: the share of the video that is done, 0–1. At 0 the run takes the upload over, whatever
            another run has left in its row; above, it reports only while the upload is its own, so that a
            worker given up for lost does not overwrite the run that follows it.

    Raises:
        UploadCancelled: an operator has cancelled the upload's analysis by this run.
    """
    rows = _row(upload_id, run_id, _OPEN) if progress > 0 else _row(upload_id)
    changed = {"progress": progress, "run_id": run_id, "failure_class": None, "message": None}
    not_cancelled = sa.not_(_cancelled(run_id))
    if _change(connection, *rows, not_cancelled, state="running", **changed) is not None:
        return True
    refuse_if_cancelled(connection, upload_id, run_id)
    return False


def refuse_if_cancelled(connection: sa.Connection, upload_id: str, run_id: str) -> None:
    """Lock the upload's row until the transaction ends, so that no cancellation comes in between.

    Raises:
        UploadCancelled: an operator has cancelled the upload's analysis by this run.
    """
    columns = (video_status.c.message, _cancelled(run_id).label("cancelled"))
    statement = sa.select(*columns).where(*_row(upload_id)).with_for_update()
    row = connection.execute(statement).first()
    if row is not None and row.cancelled:
        raise UploadCancelled(f"The analysis was cancelled. {row.message or ''}".strip())


def mark_settled(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """The upload's run succeeded and published nothing, as one that makes detections alone does.

    The upload is `done` if an analysis of it was published before, else `received`, as before any run.
    """
    published = connection.execute(
        sa.select(sa.exists().where(analyses.c.upload_id == upload_id))
    ).scalar_one()
    changed = {"state": "done", "progress": 1.0, "message": None}
    if not published:
        message = "Its last run published no events, only what comes before them: materialize `events`."
        changed = {"state": "received", "progress": 0.0, "message": message}
    return _change(connection, *_unfinished(upload_id, run_id), **changed) is not None


def requeue(connection: sa.Connection, upload_id: str, run_id: str, successor: str, message: str) -> bool:
    """The run that continues a failed one takes its upload over: it is queued again.

    Args:
        successor: id of the run that continues.
        message: what the status says until it begins.
    """
    changed = {"state": "queued", "failure_class": None, "message": message, "run_id": successor}
    rows = _row(upload_id, run_id, ("failed", *UNFINISHED_STATES))
    return _change(connection, *rows, **changed) is not None


def add_outlook(connection: sa.Connection, upload_id: str, run_id: str, outlook: str) -> bool:
    """Add to a failed upload's message what follows, as when it is retried; once."""
    known = sa.func.coalesce(video_status.c.message, "")
    message = sa.case((sa.func.strpos(known, outlook) > 0, known), else_=sa.func.concat(known, " ", outlook))
    return _change(connection, *_row(upload_id, run_id, ("failed",)), message=message) is not None


def mark_failed(
    connection: sa.Connection,
    upload_id: str,
    run_id: str,
    *,
    failure_class: str,
    message: str,
    only_if_unfinished: bool = False,
    tried_again: bool = False,
) -> bool:
    """A run of the upload failed, unless it has been cancelled; the notice `video.failed` is queued with it.

    Args:
        only_if_unfinished: leave the row alone if it is already final, or belongs to another run.
        tried_again: the system will retry it, which the notice says.
    """
    _lock_video(connection, upload_id)
    # A run that an operator has cancelled may fail because of that.
    rows = [*_row(upload_id), sa.not_(_cancelled(run_id))]
    if only_if_unfinished:
        rows = _unfinished(upload_id, run_id)
    reason = {"failure_class": failure_class, "message": message, "run_id": run_id}
    video_id = _change(connection, *rows, state="failed", **reason)
    if video_id is None:
        return False
    notify(connection, "video.failed", upload_id, video_id, {**reason, "tried_again": tried_again})
    return True


def mark_archived(connection: sa.Connection, upload_id: str) -> bool:
    """Intake found the upload in an archive, so that no run is started for it.

    Returns:
        Whether the row changed, with its notice `video.failed`; it does not once a run had the upload.
    """
    _lock_video(connection, upload_id)
    message = "The video is in an archive. Restore it: a completed restore is analysed like an upload."
    conditions = [video_status.c.upload_id == upload_id, video_status.c.state == "received"]
    video_id = _change(
        connection, *conditions, state="failed", failure_class="source-archived", message=message
    )
    if video_id is None:
        return False
    payload = {"failure_class": "source-archived", "message": message, "tried_again": False, "run_id": None}
    notify(connection, "video.failed", upload_id, video_id, payload)
    return True


def give_up(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """Queue a notice that a failed upload is not retried, where the last one said that it would be."""
    _lock_video(connection, upload_id)
    failed = sa.select(video_status.c.video_id, video_status.c.message).with_for_update()
    row = connection.execute(failed.where(*_row(upload_id, run_id, ("failed",)))).first()
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
        "run_id": run_id,
        "tried_again": False,
    }
    notify(connection, "video.failed", upload_id, row.video_id, payload)
    return True


def mark_superseded(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """The object was overwritten before the run could read it: no failure, and no notice of one."""
    ours = sa.or_(video_status.c.run_id == run_id, video_status.c.state != "done")
    message = "It was overwritten by a newer upload before it could be read; that one has its own run."
    changed = {"state": "superseded", "failure_class": None, "message": message, "run_id": run_id}
    return _change(connection, *_row(upload_id), ours, **changed) is not None


def mark_cancelled(
    connection: sa.Connection, upload_id: str, run_id: str, message: str | None = None
) -> bool:
    """An operator cancelled the upload's run."""
    changed = {"state": "cancelled", "message": message, "run_id": run_id}
    return _change(connection, *_unfinished(upload_id, run_id), **changed) is not None


def cancel_upload(connection: sa.Connection, upload_id: str, message: str, run_id: str | None = None) -> bool:
    """An operator cancels the upload, whether its analysis is under way or has failed and will be retried.

    From here on the run publishes nothing, whatever another run of the upload does. If the watchdog saw the
    run's end first, the message is added.

    Args:
        run_id: the run that is to be ended; None keeps the one that the row names.

    Returns:
        Whether the upload was not cancelled before, or not with a message.
    """
    if run_id is not None:
        cancelled = video_status.c.cancelled_run_ids
        added = sa.update(video_status).values(cancelled_run_ids=sa.func.array_append(cancelled, run_id))
        # What the run has published already stays, and it may find that out by publishing again.
        unpublished = sa.or_(video_status.c.state != "done", video_status.c.run_id.is_distinct_from(run_id))
        connection.execute(
            added.where(*_row(upload_id), sa.literal(run_id) != sa.all_(cancelled), unpublished)
        )
    open_or_unexplained = sa.or_(
        video_status.c.state.not_in(("done", "superseded", "cancelled")),
        sa.and_(video_status.c.state == "cancelled", video_status.c.message.is_(None)),
    )
    changed = {"state": "cancelled", "failure_class": None, "message": message}
    if run_id is not None:
        changed["run_id"] = run_id
    return _change(connection, *_row(upload_id), open_or_unexplained, **changed) is not None


def is_done_by(connection: sa.Connection, upload_id: str, run_id: str) -> bool:
    """Whether the run has finished the upload."""
    done = sa.exists().where(*_row(upload_id, run_id, ("done",)))
    return connection.execute(sa.select(done)).scalar_one()


def finish(
    connection: sa.Connection, upload_id: str, run_id: str, message: str | None, *, anew: bool
) -> bool:
    """An analysis of the upload is published.

    Args:
        message: what is wrong with the file, if anything is.
        anew: something was published just now, so that the row names this run even if it said `done`.
    """
    rows = _row(upload_id) if anew else [*_row(upload_id), video_status.c.state != "done"]
    changed = {"state": "done", "progress": 1.0, "failure_class": None, "message": message, "run_id": run_id}
    return _change(connection, *rows, **changed) is not None


def unfinished_runs(connection: sa.Connection) -> list[tuple[str, str]]:
    """(upload id, run id) of every upload that is queued, waits for compute or runs, oldest first."""
    statement = (
        sa.select(video_status.c.upload_id, video_status.c.run_id)
        .where(video_status.c.state.in_(UNFINISHED_STATES), video_status.c.run_id.is_not(None))
        .order_by(video_status.c.recorded_order)
    )
    return [(upload_id, run_id) for upload_id, run_id in connection.execute(statement)]


def _lock_video(connection: sa.Connection, upload_id: str) -> None:
    """Lock the row of the upload's video, as a notice requires; rows that refer to it can be added."""
    of_upload = sa.select(video_status.c.video_id).where(video_status.c.upload_id == upload_id)
    row = sa.select(videos.c.video_id).where(videos.c.video_id == of_upload.scalar_subquery())
    connection.execute(row.with_for_update(key_share=True))


def _change(connection: sa.Connection, *conditions: sa.ColumnElement[bool], **values: Any) -> str | None:
    """Change one row if it meets the conditions; the id of its video if it did."""
    statement = (
        sa.update(video_status)
        .where(*conditions)
        .values(updated_at=sa.func.now(), **values)
        .returning(video_status.c.video_id)
    )
    return connection.execute(statement).scalar()


def _row(
    upload_id: str, run_id: str | None = None, states: Collection[str] = ()
) -> list[sa.ColumnElement[bool]]:
    """The upload's row, if it is this run's and in one of these states."""
    conditions = [video_status.c.upload_id == upload_id]
    if run_id is not None:
        conditions.append(video_status.c.run_id == run_id)
    if states:
        conditions.append(video_status.c.state.in_(states))
    return conditions


def _cancelled(run_id: str) -> sa.ColumnElement[bool]:
    """This run was cancelled, by an operator or with the row: a run that is requested later may take it over.

    The row may name no run: IS NOT DISTINCT FROM answers false then, where `=` would answer null.
    """
    with_row = sa.and_(
        video_status.c.state == "cancelled", video_status.c.run_id.is_not_distinct_from(run_id)
    )
    return sa.or_(with_row, sa.literal(run_id) == sa.any_(video_status.c.cancelled_run_ids))


def _unfinished(upload_id: str, run_id: str) -> list[sa.ColumnElement[bool]]:
    """The upload's row, if it is not final and no other run has it."""
    free = sa.or_(video_status.c.run_id == run_id, video_status.c.run_id.is_(None))
    return [*_row(upload_id, states=_OPEN), free]


def _first(connection: sa.Connection, which: sa.ColumnElement[bool]) -> Mapping[str, Any] | None:
    statement = sa.select(video_status).where(which).order_by(*LATEST_FIRST).limit(1)
    row = connection.execute(statement).mappings().first()
    return None if row is None else dict(row)
