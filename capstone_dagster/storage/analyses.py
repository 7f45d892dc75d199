"""The table `analyses`: publish an analysis with its events, and choose the current one of a video.

Each function needs a transaction, which makes publication atomic: a second attempt changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage import erasures, outbox, provenance, video_status, watches
from capstone_dagster.storage.database import DatabaseError
from capstone_dagster.storage.deadlines import limited
from capstone_dagster.storage.schema import SCHEMA, analyses, events, videos
from capstone_dagster.storage.schema import video_status as statuses
from capstone_dagster.storage.statements import timed
from capstone_dagster.storage.uploads import VideoFacts

_NO_ZONES = {"zones": "[]", "crossings": "[]"}
_EVENT_COLUMNS = tuple(column.name for column in events.columns)
_in_order = itemgetter(*_EVENT_COLUMNS)


@dataclass(frozen=True, slots=True)
class Analysis:
    """One row of `analyses`, without the columns that the database fills.

    Attributes:
        requested_at: when the run that publishes it was requested; decides which analysis is current.
        gpu_seconds: 0 on a CPU.
        seconds: wall time of the pass over the pixels.
    """

    analysis_id: str
    detection_id: str
    video_id: str
    upload_id: str
    model: str
    model_sha256: str
    settings: Mapping[str, Any]
    detection_version: int
    events_version: int
    run_id: str
    frames_decoded: int
    frames_analyzed: int
    detections: int
    tracks: int
    events: int
    device: str
    backend: str
    gpu_seconds: float
    seconds: float
    objects_prefix: str
    requested_at: datetime


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing did.

    Attributes:
        inserted: rows were written; False when this analysis was published before.
        current: it is what consumers now see; False when a newer upload's analysis is.
        published_at: when it was first published.
        first: it is new, and the first analysis of its upload.
    """

    inserted: bool
    current: bool
    published_at: datetime
    first: bool


class NotRolledBack(DatabaseError):
    """This analysis cannot become the video's current one; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """What rolling back did.

    Attributes:
        analysis_id: the current analysis now.
        replaced: the current one before; None if there was none, and `analysis_id` if nothing changed.
        events: how many consumers see now.
    """

    analysis_id: str
    replaced: str | None
    events: int

    @property
    def changed(self) -> bool:
        """Whether another analysis was current before."""
        return self.replaced != self.analysis_id


def analyses_of(connection: sa.Connection, video_id: str) -> list[dict[str, Any]]:
    """Rows of `analyses` of a video, oldest first."""
    statement = sa.select(analyses).where(analyses.c.video_id == video_id).order_by(analyses.c.published_at)
    return [dict(row) for row in connection.execute(statement).mappings()]


def publish_analysis(
    connection: sa.Connection,
    analysis: Analysis,
    rows: Sequence[Mapping[str, Any]],
    video: VideoFacts,
    damage: str | None = None,
) -> Publication:
    """Write an analysis with its events and make it current.

    The same analysis again writes nothing and only becomes current; a repeated call changes nothing at all.
    (Only the thumbnails of its events are named again, if their files had been removed.) An analysis of an
    older upload than the current one is stored without becoming current; between analyses of one upload the
    one requested last wins. Events of the latest upload get the camera and the recording time that are known
    by now, which the caller may have missed.

    Args:
        rows: one mapping a row of `events`, without analysis_id and video_id; `zones` and `crossings` as JSON
            texts, if there are any.
        damage: what is wrong with the file, for those who wait for the upload.

    Raises:
        UploadCancelled: an operator has cancelled the run's upload; nothing is written.
    """
    known = _locked_video(connection, analysis.video_id)
    if known is None:
        raise DatabaseError(f"There is no video {analysis.video_id!r}: it was deleted meanwhile.")
    erasures.refuse_if_under_way(connection, analysis.video_id)
    video_status.refuse_if_cancelled(connection, analysis.upload_id, analysis.run_id)
    of_upload = sa.select(statuses).where(statuses.c.upload_id == analysis.upload_id)
    upload = connection.execute(of_upload).mappings().first()
    latest = video_status.latest(connection, analysis.video_id)
    if upload is None or latest is None:
        raise DatabaseError(f"There is no upload {analysis.upload_id!r}: it was deleted meanwhile.")
    of_latest = latest["upload_id"] == analysis.upload_id

    stored, inserted = _store(connection, analysis, upload, of_latest=of_latest)
    others = sa.exists().where(
        analyses.c.video_id == analysis.video_id,
        analyses.c.upload_id == analysis.upload_id,
        analyses.c.analysis_id != analysis.analysis_id,
    )
    first = inserted and not connection.execute(sa.select(others)).scalar()
    if inserted:
        _copy_events(connection, analysis, rows)
    elif stored["files_removed_at"] is not None:
        _restore_thumbnails(connection, analysis.analysis_id, rows)
    if of_latest:
        changed = provenance.found(known, video)
        provenance.change(connection, analysis.video_id, analysis.upload_id, changed, new_events=True)
    current = _make_current_if_last(connection, analysis.analysis_id, analysis.video_id)
    anew = inserted or (current and not stored["is_current"])
    done = video_status.finish(connection, analysis.upload_id, analysis.run_id, damage, anew=anew)
    if anew or done:
        payload = {
            "analysis_id": analysis.analysis_id,
            "events": analysis.events,
            "current": current,
            "run_id": analysis.run_id,
        }
        outbox.notify(connection, "video.analyzed", analysis.upload_id, analysis.video_id, payload)
    # Not of analyses made later: what people would hear of is past.
    if first and current:
        watches.notify_watched(connection, analysis.analysis_id, analysis.upload_id, analysis.video_id)
    return Publication(inserted=inserted, current=current, published_at=stored["published_at"], first=first)


def roll_back(connection: sa.Connection, video_id: str, analysis_id: str) -> Rollback:
    """Make an earlier analysis of a video current again.

    Current is what was requested last, so the analysis is marked as requested now: an earlier request that
    comes late, or again, leaves it current, and a later request replaces it. The notice `video.analyzed` is
    queued if it was not current; a second call changes nothing that consumers see.

    Raises:
        NotRolledBack: the video has no such analysis, or it is of an upload that was overwritten since.
    """
    known = _locked_video(connection, video_id)
    latest = None if known is None else video_status.latest(connection, video_id)
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
        sa.select(analyses.c.analysis_id, statuses.c.upload_id)
        .join(statuses, statuses.c.upload_id == analyses.c.upload_id)
        .where(of_video, analyses.c.is_current)
    ).first()
    # Without a current analysis, no newer upload's analysis could be hidden.
    upload_id = latest["upload_id"] if current is None else current.upload_id
    if row["upload_id"] != upload_id:
        raise NotRolledBack(
            f"Analysis {analysis_id} is of another upload of {video_id} than the current one: its events "
            "are of a video that has been overwritten since. Upload that one again to see them."
        )
    now = sa.func.clock_timestamp()
    requested_last = sa.select(
        sa.func.greatest(now, sa.func.max(analyses.c.requested_at) + sa.text("interval '1 microsecond'"))
    ).where(of_video)
    connection.execute(sa.update(analyses).where(this).values(requested_at=requested_last.scalar_subquery()))
    replaced = None if current is None else current.analysis_id
    if replaced != analysis_id:
        _make_current(connection, analysis_id, video_id)
        payload = {"analysis_id": analysis_id, "events": row["events"], "current": True}
        outbox.notify(connection, "video.analyzed", upload_id, video_id, payload)
    return Rollback(analysis_id=analysis_id, replaced=replaced, events=row["events"])


def _locked_video(connection: sa.Connection, video_id: str) -> sa.RowMapping | None:
    """The video's row; its lock puts publications, rollbacks and deletions of one video in order."""
    statement = sa.select(videos).where(videos.c.video_id == video_id).with_for_update()
    return connection.execute(statement).mappings().first()


def _store(
    connection: sa.Connection, analysis: Analysis, upload: Mapping[Any, Any], *, of_latest: bool
) -> tuple[sa.RowMapping, bool]:
    """Insert an analysis, or record that it was requested once more: its row, and whether it is new."""
    requested = {**asdict(analysis), "uploaded_at": upload["uploaded_at"]}
    added = connection.execute(
        insert(analyses)
        .values(**requested, is_current=False)
        .on_conflict_do_nothing(index_elements=["analysis_id"])
        .returning(analyses)
    ).mappings()
    if (new := added.first()) is not None:
        return new, True
    this = analyses.c.analysis_id == analysis.analysis_id
    stored = connection.execute(sa.select(analyses).where(this)).mappings().one()
    changed = {"requested_at": max(analysis.requested_at, stored["requested_at"])}
    if of_latest or upload["uploaded_at"] > stored["uploaded_at"]:
        # The same bytes were uploaded again: from now on this is the analysis of that upload.
        changed |= {name: requested[name] for name in ("upload_id", "uploaded_at")}
    changed = {name: value for name, value in changed.items() if value != stored[name]}
    if changed:
        connection.execute(sa.update(analyses).where(this).values(changed))
    return stored, False


def _copy_events(connection: sa.Connection, analysis: Analysis, rows: Sequence[Mapping[str, Any]]) -> None:
    # COPY is the fastest way in, and part of the transaction like any other statement.
    fixed = {"analysis_id": analysis.analysis_id, "video_id": analysis.video_id}
    driver = connection.connection.driver_connection
    assert driver is not None
    statement = f"COPY {SCHEMA}.events ({', '.join(_EVENT_COLUMNS)}) FROM STDIN"
    with (
        timed(connection, statement),
        limited(connection),
        driver.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        for row in rows:
            whole = {**_NO_ZONES, **row, **fixed}
            # psycopg writes lists as arrays, tuples as rows.
            copy.write_row([list(each) if isinstance(each, tuple) else each for each in _in_order(whole)])


def _restore_thumbnails(
    connection: sa.Connection, analysis_id: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Name the files again that retention removed and a new pass has written."""
    this = analyses.c.analysis_id == analysis_id
    connection.execute(sa.update(analyses).where(this).values(files_removed_at=None))
    event = sa.and_(events.c.analysis_id == analysis_id, events.c.event_id == sa.bindparam("event"))
    thumbnails = [{"event": row["event_id"], "thumbnail": row["thumbnail_key"]} for row in rows]
    if thumbnails:
        thumbnail = sa.bindparam("thumbnail", type_=sa.Text)
        connection.execute(sa.update(events).where(event).values(thumbnail_key=thumbnail), thumbnails)


def _make_current_if_last(connection: sa.Connection, analysis_id: str, video_id: str) -> bool:
    """Make an analysis current unless one of a newer upload, or one requested later, is; whether it is."""
    order = (
        sa.select(analyses.c.analysis_id)
        .join(statuses, statuses.c.upload_id == analyses.c.upload_id)
        .where(
            analyses.c.video_id == video_id,
            sa.or_(analyses.c.is_current, analyses.c.analysis_id == analysis_id),
        )
        # On equal terms the one being published wins: it is what was requested now.
        .order_by(
            *video_status.LATEST_FIRST,
            analyses.c.requested_at.desc(),
            (analyses.c.analysis_id == analysis_id).desc(),
        )
        .limit(1)
    )
    if connection.execute(order).scalar() != analysis_id:
        return False
    _make_current(connection, analysis_id, video_id)
    return True


def _make_current(connection: sa.Connection, analysis_id: str, video_id: str) -> None:
    # Two statements, because a unique index is checked row by row within one.
    others = sa.and_(analyses.c.video_id == video_id, analyses.c.analysis_id != analysis_id)
    connection.execute(sa.update(analyses).where(others, analyses.c.is_current).values(is_current=False))
    this = sa.and_(analyses.c.analysis_id == analysis_id, sa.not_(analyses.c.is_current))
    connection.execute(sa.update(analyses).where(this).values(is_current=True))
