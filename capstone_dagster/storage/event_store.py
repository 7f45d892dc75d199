"""The event store: one transaction publishes one analysis, and a second attempt changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage import (
    activity,
    currency,
    erasures,
    exports,
    history,
    outbox,
    recording,
    status,
    workload,
)
from capstone_dagster.storage.database import DatabaseError, database_errors, open_engine
from capstone_dagster.storage.database import migrate as migrate_engine
from capstone_dagster.storage.database import ping as ping_engine
from capstone_dagster.storage.errors import DatabaseUnavailable
from capstone_dagster.storage.records import (
    Analysis,
    AnalysisFigures,
    Backlog,
    Notice,
    Pace,
    Publication,
    VideoFacts,
    VideoUpload,
)
from capstone_dagster.storage.schema import FINAL_STATES, SCHEMA, analyses, events, video_status, videos
from capstone_dagster.storage.statements import SlowStatementReport, StatementWatch

State = Literal[
    "received", "queued", "waiting-for-compute", "running", "done", "failed", "superseded", "cancelled"
]

_EVENT_COLUMNS = tuple(column.name for column in events.columns)


class EventStore:
    """Videos, their status, analyses and events in PostgreSQL.

    Every method raises the classes of :mod:`capstone_dagster.storage.database`:
    `DatabaseUnavailable`, `SchemaMissing`, `PermissionDenied`, `RefusedByDatabase`, `DatabaseError`.

    Args:
        slow: is told of each statement that took long.
        unavailable: is told each time that the database does not answer.
    """

    def __init__(
        self,
        url: str,
        slow: SlowStatementReport | None = None,
        unavailable: Callable[[DatabaseUnavailable], None] | None = None,
    ) -> None:
        self.engine = open_engine(url)
        self._unavailable = unavailable
        self._watch = StatementWatch(self.engine, slow or _nobody)

    def close(self) -> None:
        """Close pooled connections."""
        self.engine.dispose()

    def migrate(self) -> None:
        """Create or upgrade the tables."""
        migrate_engine(self.engine)

    def ping(self) -> None:
        """Nothing, if the store answers, has the tables and may be written; in one round trip.

        Raises:
            DatabaseUnavailable: it does not answer, is read-only, or is a standby.
            SchemaMissing: it has not the tables, or not this version's columns.
            PermissionDenied: this user may not write them.
        """
        with self._watched():
            ping_engine(self.engine)

    def record_upload(self, upload: VideoUpload, told: Collection[str] = ()) -> None:
        """Remember an upload and what is said of it; the same again changes nothing.

        Of one upload, what a message told goes before what was derived, of the recording time the better
        source counts (message, metadata, name, container), and what was unknown is filled. A newer upload of
        the same object replaces whereabouts, camera and recording time; the external id stays unless it
        brings one. Published events of the upload get its camera and times along with it.

        Args:
            told: which of `external_id`, `camera` and `recorded_at` the message itself gave.

        Raises:
            RefusedByDatabase: PostgreSQL will never take one of its values.
            ErasureUnderWay: the video is being deleted.
        """
        row = insert(videos).values(recording.first_row(upload, told))
        # Changes nothing, but locks and returns the row that is there already.
        row = row.on_conflict_do_update(index_elements=["video_id"], set_={"key": row.excluded.key})
        with self._transaction() as connection:
            video = dict(connection.execute(row.returning(*videos.c)).mappings().one())
            erasures.refuse_if_under_way(connection, upload.video_id)
            new = status.receive(connection, upload)
            latest = status.latest(connection, upload.video_id)
            assert latest is not None
            newest = new and latest["upload_id"] == upload.upload_id
            changed = recording.learnt(video, upload, told, newest=newest)
            recording.change(connection, upload.video_id, latest["upload_id"], changed)

    def mark_queued(self, run_ids: Mapping[str, str]) -> None:
        """Uploads whose run is on record move from `received` to `queued`.

        Args:
            run_ids: upload id → run id.
        """
        if not run_ids:
            return
        with self._transaction() as connection:
            status.queue(connection, run_ids)

    def mark_waiting(self, upload_id: str, run_id: str, reason: str) -> bool:
        """The upload's run is launched and waits for a machine.

        Returns:
            Whether the row was told something new; it is not if the run has begun, or another one has it.
        """
        with self._transaction() as connection:
            return status.wait(connection, upload_id, run_id, reason)

    def hand_over(self, upload_id: str, run_id: str, successor: str) -> bool:
        """The run that retries another one takes its upload over, unless that is finished.

        Returns:
            Whether the row changed.
        """
        with self._transaction() as connection:
            return status.hand_over(connection, upload_id, run_id, successor)

    def mark_running(self, upload_id: str, run_id: str, progress: float = 0.0) -> None:
        """A run works on the upload.

        Args:
            progress: the share of the video that is behind it, 0–1. At 0 the run takes the upload over,
                whatever was of it before; above, it only tells of an upload that it has still, so that a
                worker given up for lost does not speak for the run that follows it.
        """
        with self._transaction() as connection:
            status.run(connection, upload_id, run_id, progress)

    def mark_failed(
        self,
        upload_id: str,
        run_id: str,
        *,
        failure_class: str,
        message: str,
        only_if_unfinished: bool = False,
        tried_again: bool = False,
    ) -> bool:
        """A run of the upload ended in failure; nothing changes if that run has been cancelled.

        Args:
            only_if_unfinished: leave the row alone if it is already final, or belongs to another run.
            tried_again: the system will start it again by itself, which the notice tells consumers.

        Returns:
            Whether the row was changed; the notice `video.failed` is queued with it.
        """
        with self._transaction() as connection:
            return status.fail(
                connection,
                upload_id,
                run_id,
                failure_class,
                message,
                only_if_unfinished=only_if_unfinished,
                tried_again=tried_again,
            )

    def mark_superseded(self, upload_id: str, run_id: str) -> bool:
        """The object was overwritten before the run could read it: no failure, and no notice of one.

        Returns:
            Whether the row was changed; it is not if another run has finished the upload.
        """
        with self._transaction() as connection:
            return status.supersede(connection, upload_id, run_id)

    def mark_cancelled(self, upload_id: str, run_id: str, message: str | None = None) -> None:
        """An operator ended the upload's run; a finished upload, or one with another run, stays as it is."""
        with self._transaction() as connection:
            status.cancel(connection, upload_id, run_id, message)

    def mark_begun(self, upload_id: str, run_id: str) -> bool:
        """The run that the upload waits for has its worker, though that has told nothing yet.

        Returns:
            Whether the row changed; it does not if it says more already, or another run has the upload.
        """
        with self._transaction() as connection:
            return status.begin(connection, upload_id, run_id)

    def mark_settled(self, upload_id: str, run_id: str) -> bool:
        """The upload's run ended well and has published nothing, as one that makes detections alone does.

        It is `done` if an analysis of it was published before, else `received`, as if no run had been.

        Returns:
            Whether the row changed; it does not if the upload is finished, or another run has it.
        """
        with self._transaction() as connection:
            return status.settle(connection, upload_id, run_id)

    def cancel_upload(self, upload_id: str, message: str) -> bool:
        """An operator wants no analysis of the upload, be it under way or failed and to be tried again.

        Returns:
            Whether the row says so now; a finished, superseded or cancelled upload stays as it is.
        """
        with self._transaction() as connection:
            return status.cancel_upload(connection, upload_id, message)

    def states(self, upload_ids: Collection[str]) -> dict[str, str]:
        """Upload id → state, of those uploads that are known."""
        with self._transaction() as connection:
            return status.states(connection, upload_ids)

    def failed_by(self, run_ids: Collection[str]) -> list[Mapping[str, Any]]:
        """upload_id, video_id, failure_class of the uploads that failed last in one of these runs."""
        with self._transaction() as connection:
            return status.failed_by(connection, run_ids)

    def requeue(self, upload_id: str, run_id: str, successor: str, message: str) -> bool:
        """The run that goes on where a failed one stopped takes its upload over: it is queued again.

        Args:
            successor: id of the run that goes on.
            message: what the status says until it begins.

        Returns:
            Whether the row changed; it does not if another run has the upload, or it is finished.
        """
        with self._transaction() as connection:
            return status.requeue(connection, upload_id, run_id, successor, message)

    def add_outlook(self, upload_id: str, run_id: str, outlook: str) -> bool:
        """Add to a failed upload's message what follows, as when it is tried again; once.

        Returns:
            Whether the row says so; it does not if it says nothing of this run's failure (yet).
        """
        with self._transaction() as connection:
            return status.add_outlook(connection, upload_id, run_id, outlook)

    def give_up(self, upload_id: str, run_id: str) -> bool:
        """Tell that a failed upload is not tried again, where the last notice said that it would be.

        Returns:
            Whether there was somebody to tell.
        """
        with self._transaction() as connection:
            return status.give_up(connection, upload_id, run_id)

    def unfinished_runs(self) -> list[tuple[str, str]]:
        """(upload id, run id) of every upload that is queued, waits for compute or runs, oldest first."""
        with self._transaction() as connection:
            return status.unfinished_runs(connection)

    def publish(
        self, analysis: Analysis, rows: Sequence[Mapping[str, Any]], video: VideoFacts
    ) -> Publication:
        """Write an analysis with its events and make it current, in one transaction.

        The same analysis again writes nothing and only becomes current; a repeated call changes nothing at
        all. (Only the pictures of its events are named again, if their files had been removed.) An analysis
        of an older upload than the current one is stored without becoming current; between analyses of one
        upload the one asked for last wins. Events of the latest upload get the camera and the recording time
        that are known by now, which the caller may have missed.

        Args:
            rows: one mapping a row of `events`, without analysis_id and video_id.
        """
        with self._transaction() as connection:
            # The video's row is the lock that puts publications of one video in order.
            known = self._one(
                connection, sa.select(videos).where(videos.c.video_id == analysis.video_id).with_for_update()
            )
            if known is None:
                raise DatabaseError(f"There is no video {analysis.video_id!r}: it was deleted meanwhile.")
            erasures.refuse_if_under_way(connection, analysis.video_id)
            upload = self._one(
                connection, sa.select(video_status).where(video_status.c.upload_id == analysis.upload_id)
            )
            latest = status.latest(connection, analysis.video_id)
            if upload is None or latest is None:
                raise DatabaseError(f"There is no upload {analysis.upload_id!r}: it was deleted meanwhile.")
            of_latest = latest["upload_id"] == analysis.upload_id

            stored, inserted = self._store(connection, analysis, upload, of_latest=of_latest)
            first = inserted and self._is_first(connection, analysis)
            if inserted:
                self._copy_events(connection, analysis, rows)
            elif stored["files_removed_at"] is not None:
                self._restore_pictures(connection, analysis.analysis_id, rows)
            if of_latest:
                changed = recording.found(known, video)
                recording.change(connection, analysis.video_id, analysis.upload_id, changed, new_events=True)
            current = self._make_current(connection, analysis.analysis_id, analysis.video_id)
            anew = inserted or (current and not stored["is_current"])
            done = status.finish(connection, analysis.upload_id, analysis.run_id, anew=anew)
            if anew or done:
                payload = {
                    "analysis_id": analysis.analysis_id,
                    "events": analysis.events,
                    "current": current,
                    "run_id": analysis.run_id,
                }
                status.notify(connection, "video.analyzed", analysis.upload_id, analysis.video_id, payload)
        return Publication(
            inserted=inserted, current=current, published_at=stored["published_at"], first=first
        )

    def send_notices(
        self, send: Callable[[Sequence[Notice]], Mapping[int, str]], *, most: int
    ) -> tuple[int, dict[int, str]]:
        """Hand the first unsent notice of each video to `send`, and keep what became of it.

        They are locked meanwhile: another process that calls this takes others. If `send` raises, or this
        process dies in between, nothing is kept, and they are sent once more.

        Args:
            send: takes them, at most `most`; returns those that were refused, ids to reasons.

        Returns:
            How many were sent, and those that were refused.
        """
        with self._transaction() as connection:
            taken = outbox.take(connection, most)
            if not taken:
                return 0, {}
            refused = dict(send(taken))
            outbox.sent(connection, [each.notice_id for each in taken if each.notice_id not in refused])
            outbox.refused(connection, refused)
        return len(taken) - len(refused), refused

    def oldest_notice(self) -> datetime | None:
        """When the oldest notice that is not sent was written; None if all are sent."""
        with self._transaction() as connection:
            return outbox.oldest(connection)

    def backlog(self) -> Backlog:
        """What waits in the outbox."""
        with self._transaction() as connection:
            return outbox.backlog(connection)

    def prune_notices(self, *, days: int) -> int:
        """Forget some of the notices that were sent more than so many days ago; how many went."""
        with self._transaction() as connection:
            return outbox.prune(connection, days)

    def roll_back(self, video_id: str, analysis_id: str) -> currency.Rollback:
        """Make an earlier analysis of a video current again, in one transaction.

        It counts as asked for now, so a later request still replaces it, and an earlier one does not. Again
        changes nothing that anybody sees. The notice `video.analyzed` is queued if it was not current.

        Raises:
            NotRolledBack: it is none of this video's, or of an upload that has been overwritten since.
        """
        with self._transaction() as connection:
            return currency.roll_back(connection, video_id, analysis_id)

    def latest_upload(self, video_id: str) -> VideoUpload | None:
        """The newest upload known of a video; None if the video is unknown."""
        of_video = ("video_id", "external_id", "bucket", "key", "camera", "recorded_at", "recorded_at_source")
        of_upload = ("upload_id", "version_id", "etag", "size_bytes", "uploaded_at")
        statement = (
            sa.select(*(videos.c[name] for name in of_video), *(video_status.c[name] for name in of_upload))
            .join_from(videos, video_status, videos.c.video_id == video_status.c.video_id)
            .where(videos.c.video_id == video_id)
            .order_by(*status.LATEST_FIRST)
            .limit(1)
        )
        with self._transaction() as connection:
            row = self._one(connection, statement)
        return None if row is None else VideoUpload(**row)

    def first_seen(self, video_ids: Collection[str]) -> datetime | None:
        """When the first of these videos was first heard of; None if none of them is known."""
        statement = sa.select(sa.func.min(videos.c.first_seen_at)).where(videos.c.video_id.in_(video_ids))
        with self._transaction() as connection:
            began: datetime | None = connection.execute(statement).scalar_one()
        return began

    def finished_before(self, cutoff: datetime) -> list[str]:
        """Ids of videos whose every upload is older than `cutoff` and over, whichever way."""
        final = video_status.c.state.in_(FINAL_STATES)
        statement = (
            sa.select(video_status.c.video_id)
            .group_by(video_status.c.video_id)
            .having(sa.func.max(video_status.c.uploaded_at) < cutoff, sa.func.bool_and(final))
        )
        with self._transaction() as connection:
            return list(connection.execute(statement).scalars())

    def current_events(self, video: str | None = None, *, limit: int | None = None) -> list[dict[str, Any]]:
        """Rows of `current_events` in order of time, of all videos or of one (by its id or external id)."""
        return self._view("current_events", video, "video_id, start_ms, track_id", limit)

    @contextmanager
    def stream_events(
        self, which: exports.EventFilter
    ) -> Iterator[tuple[list[str], Iterator[Sequence[tuple[Any, ...]]]]]:
        """The columns of `current_events`, and its rows in portions, all as of one moment.

        By camera, then time; in memory is one portion at a time.
        """
        with self._transaction() as connection:
            yield exports.stream_events(connection, which)

    def activity(self, *, zone: str, days: int) -> tuple[list[Mapping[str, Any]], int]:
        """Events of each camera and hour of the last days, and how many events have no wall-clock time.

        Rows of camera, hour (when it began, in the zone), events, persons, faces, in order of time.
        """
        with self._transaction() as connection:
            return activity.activity(connection, zone=zone, days=days)

    def workload(self) -> list[dict[str, Any]]:
        """Every video, in order of upload, with what its current analysis was made with.

        video_id, camera, uploaded_at, etag, size_bytes, duration_ms, model, model_sha256; None where nothing
        is known.
        """
        with self._transaction() as connection:
            return workload.of_videos(connection)

    def finished_detections(self, detection_ids: Collection[str]) -> set[str]:
        """Those of these detections that something was published of, and that are kept."""
        with self._transaction() as connection:
            return workload.finished(connection, detection_ids)

    def pace(
        self, *, model_sha256: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> Pace | None:
        """How long the latest passes took, with this model and these settings or any; None without one."""
        with self._transaction() as connection:
            return workload.pace(connection, model_sha256=model_sha256, settings=settings)

    def current_status(self, video: str | None = None, *, limit: int | None = None) -> list[dict[str, Any]]:
        """Rows of `current_status`, latest first, of all videos or of one (by its id or external id)."""
        return self._view("current_status", video, "updated_at DESC, video_id", limit)

    def failed_uploads(
        self, failure_class: str | None = None, since: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Rows of `current_status` of videos whose latest upload failed, oldest first.

        Args:
            failure_class: only of this class.
            since: only those that failed, or of which something was told, at this time or later.
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
        with self._transaction() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def analyses(self, video_id: str) -> list[dict[str, Any]]:
        """Rows of `analyses` of a video, oldest first."""
        statement = (
            sa.select(analyses).where(analyses.c.video_id == video_id).order_by(analyses.c.published_at)
        )
        with self._transaction() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def events_of(self, analysis_id: str) -> list[dict[str, Any]]:
        """Rows of `events` of an analysis, current or not, in order of time."""
        statement = (
            sa.select(events)
            .where(events.c.analysis_id == analysis_id)
            .order_by(events.c.start_ms, events.c.track_id)
        )
        with self._transaction() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def camera_history(
        self, analysis_id: str, *, limit: int
    ) -> tuple[AnalysisFigures | None, list[AnalysisFigures]]:
        """An analysis's figures, and those of the same camera's other videos, latest uploads first.

        Args:
            limit: of so many at most.
        """
        with self._transaction() as connection:
            return history.figures(connection, analysis_id), history.of_camera(connection, analysis_id, limit)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._watched(), database_errors(self.engine), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except DatabaseUnavailable as error:
            if self._unavailable is not None:
                self._unavailable(error)
            raise

    def _view(self, view: str, video: str | None, order: str, limit: int | None) -> list[dict[str, Any]]:
        query = f"SELECT * FROM {SCHEMA}.{view}"
        if video is not None:
            query += " WHERE video_id = :video OR external_id = :video"
        query += f" ORDER BY {order}"
        if limit is not None:
            query += " LIMIT :limit"
        parameters = {"video": video, "limit": limit}
        with self._transaction() as connection:
            return [dict(row) for row in connection.execute(sa.text(query), parameters).mappings()]

    @staticmethod
    def _store(
        connection: sa.Connection, analysis: Analysis, upload: Mapping[str, Any], *, of_latest: bool
    ) -> tuple[Mapping[str, Any], bool]:
        """Insert an analysis, or say once more that it was asked for: its row, and whether it is new."""
        asked = {**asdict(analysis), "uploaded_at": upload["uploaded_at"]}
        added = connection.execute(
            insert(analyses)
            .values(**asked, is_current=False)
            .on_conflict_do_nothing(index_elements=["analysis_id"])
            .returning(analyses)
        ).mappings()
        stored = added.first()
        if stored is not None:
            return dict(stored), True
        this = analyses.c.analysis_id == analysis.analysis_id
        stored = connection.execute(sa.select(analyses).where(this)).mappings().one()
        changed = {"requested_at": max(analysis.requested_at, stored["requested_at"])}
        if of_latest or upload["uploaded_at"] > stored["uploaded_at"]:
            # The same bytes were uploaded again: from now on this is the analysis of that upload.
            changed |= {name: asked[name] for name in ("upload_id", "uploaded_at")}
        changed = {name: value for name, value in changed.items() if value != stored[name]}
        if changed:
            connection.execute(sa.update(analyses).where(this).values(changed))
        return dict(stored), False

    @staticmethod
    def _is_first(connection: sa.Connection, analysis: Analysis) -> bool:
        others = sa.and_(
            analyses.c.video_id == analysis.video_id,
            analyses.c.upload_id == analysis.upload_id,
            analyses.c.analysis_id != analysis.analysis_id,
        )
        return not connection.execute(sa.select(sa.exists().where(others))).scalar()

    def _copy_events(
        self, connection: sa.Connection, analysis: Analysis, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        # COPY is the fastest way in, and part of the transaction like any other statement.
        fixed = {"analysis_id": analysis.analysis_id, "video_id": analysis.video_id}
        driver = connection.connection.driver_connection
        assert driver is not None
        statement = f"COPY {SCHEMA}.events ({', '.join(_EVENT_COLUMNS)}) FROM STDIN"
        with self._watch.timed(statement), driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                merged = {**row, **fixed}
                copy.write_row([_copyable(merged[column]) for column in _EVENT_COLUMNS])

    @staticmethod
    def _restore_pictures(
        connection: sa.Connection, analysis_id: str, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Retention had the files removed, and the pass that was made anew has left them again."""
        this = analyses.c.analysis_id == analysis_id
        connection.execute(sa.update(analyses).where(this).values(files_removed_at=None))
        event = sa.and_(events.c.analysis_id == analysis_id, events.c.event_id == sa.bindparam("event"))
        pictures = [{"event": row["event_id"], "picture": row["thumbnail_key"]} for row in rows]
        if pictures:
            picture = sa.bindparam("picture", type_=sa.Text)
            connection.execute(sa.update(events).where(event).values(thumbnail_key=picture), pictures)

    @staticmethod
    def _make_current(connection: sa.Connection, analysis_id: str, video_id: str) -> bool:
        order = (
            sa.select(analyses.c.analysis_id)
            .join(video_status, video_status.c.upload_id == analyses.c.upload_id)
            .where(
                analyses.c.video_id == video_id,
                sa.or_(analyses.c.is_current, analyses.c.analysis_id == analysis_id),
            )
            # On equal terms the one being published wins: it is what was asked for now.
            .order_by(
                *status.LATEST_FIRST,
                analyses.c.requested_at.desc(),
                (analyses.c.analysis_id == analysis_id).desc(),
            )
            .limit(1)
        )
        if connection.execute(order).scalar() != analysis_id:
            return False
        # Two statements, because a unique index is checked row by row within one.
        others = sa.and_(analyses.c.video_id == video_id, analyses.c.analysis_id != analysis_id)
        connection.execute(sa.update(analyses).where(others, analyses.c.is_current).values(is_current=False))
        this = sa.and_(analyses.c.analysis_id == analysis_id, sa.not_(analyses.c.is_current))
        connection.execute(sa.update(analyses).where(this).values(is_current=True))
        return True

    @staticmethod
    def _one(connection: sa.Connection, statement: sa.Select[Any]) -> Mapping[str, Any] | None:
        row = connection.execute(statement).mappings().first()
        return None if row is None else dict(row)


def _nobody(statement: str, elapsed_s: float) -> None:
    """Nobody wants to know."""


def _copyable(value: Any) -> Any:
    """psycopg writes lists as arrays, tuples as rows."""
    return list(value) if isinstance(value, tuple) else value
