"""What Dagster's storage holds of a video, beyond what its own interface can delete.

Dagster deletes runs, and partitions from its lists. Materialisations that a sensor reported belong to no run,
the newest one of each asset is kept once more beside the assets, pictures included, and ticks, backfills and
checks name partitions: those are removed here, by statements on its tables as dagster 1.13 has them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Any, cast

import dagster as dg
import sqlalchemy as sa

from capstone_dagster.dagster_private import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    AssetCheckExecutionsTable,
    AssetDaemonAssetEvaluationsTable,
    AssetEventTagsTable,
    AssetKeyTable,
    BulkActionsTable,
    InstigatorsTable,
    InstigatorState,
    JobTable,
    JobTickTable,
    KeyValueStoreTable,
    RunsTable,
    RunTagsTable,
    SqlEventLogStorage,
    SqlEventLogStorageTable,
    SqlRunStorage,
    SqlScheduleStorage,
    TickData,
    deserialize_value,
    serialize_value,
)
from capstone_dagster.failures.ended_runs import SENSOR_NAME as ENDED_RUNS_SENSOR
from capstone_dagster.intake.runs import PARTITIONS_NAME
from capstone_dagster.removal import cursors
from capstone_dagster.removal.names import DELETED, Names
from capstone_dagster.run_tags import DETECTION_TAG, STORED_TAG, USED_TAG, VIDEO_TAG
from capstone_dagster.settings import ConfigurationError

_RANGE_TAGS = {ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG}
_MATERIALIZATION = dg.DagsterEventType.ASSET_MATERIALIZATION.value
_FINISHED = {
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
}
# A backfill that still makes runs needs its partitions by their names.
_BACKFILL_OVER = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")

# Of which a run has many, and which nobody reads once it is old: lines of its log apart.
_CHATTER = (
    "ENGINE_EVENT",
    "LOGS_CAPTURED",
    "HANDLED_OUTPUT",
    "LOADED_INPUT",
    "STEP_INPUT",
    "STEP_OUTPUT",
    "RESOURCE_INIT_STARTED",
    "RESOURCE_INIT_SUCCESS",
    "STEP_WORKER_STARTING",
    "STEP_WORKER_STARTED",
)
_PAGE = 500

_logs = SqlEventLogStorageTable


@dataclass(frozen=True, slots=True)
class RunTraces:
    """A run that speaks of the video.

    Attributes:
        own: it is about no other video, and goes whole; of others only what names this one goes.
        detection_ids: what its tags say that it worked on.
    """

    run_id: str
    finished: bool
    own: bool
    detection_ids: frozenset[str]


class DagsterRecords:
    """Finds, counts and removes them.

    Args:
        instance: with storage in SQL.

    Raises:
        ConfigurationError: its storage is of another kind.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        kinds = (SqlRunStorage, SqlEventLogStorage, SqlScheduleStorage)
        parts = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
        for part, kind in zip(parts, kinds, strict=True):
            if part is not None and not isinstance(part, kind):
                raise ConfigurationError(
                    f"Dagster's storage is {type(part).__name__}; records of a video can be removed from "
                    "storage in SQL only, as dagster.yaml configures it."
                )

    def runs(self, names: Names, known: Collection[str]) -> list[RunTraces]:
        """Every run that speaks of the video.

        Args:
            known: ids of runs that the event store names.
        """
        found = set(known)
        with self._runs() as connection:
            body = sa.select(RunsTable.c.run_id).where(_names(RunsTable.c.run_body, names.ids))
            tagged = sa.select(RunTagsTable.c.run_id).where(RunTagsTable.c.value == names.video_id)
            for statement in (body, tagged):
                found.update(connection.execute(statement).scalars())
        with self._events() as connection:
            found.update(
                connection.execute(sa.select(_logs.c.run_id).where(self._of_partition(names))).scalars()
            )
        found.discard("")
        runs = self._instance.get_runs(dg.RunsFilter(run_ids=sorted(found))) if found else []
        traces = [self._traces(run, names) for run in runs]
        # Its run is gone, and some of its events are not: an earlier deletion was broken off.
        gone = found - {run.run_id for run in runs}
        return traces + [RunTraces(run_id, True, True, frozenset()) for run_id in sorted(gone)]

    def _traces(self, run: dg.DagsterRun, names: Names) -> RunTraces:
        tagged = names.video_id in (run.tags.get(VIDEO_TAG), run.tags.get(PARTITION_NAME_TAG))
        own = tagged and not _RANGE_TAGS & run.tags.keys()
        if own:
            others = sa.select(_logs.c.id).where(
                _logs.c.run_id == run.run_id,
                _logs.c.partition.is_not(None),
                _logs.c.partition != names.video_id,
            )
            with self._events() as connection:
                own = connection.execute(others.limit(1)).first() is None
        named = (DETECTION_TAG, STORED_TAG, USED_TAG) if own else ()
        work = {run.tags[tag] for tag in named if tag in run.tags}
        return RunTraces(run.run_id, run.status in _FINISHED, own, frozenset(work))

    def work(self, names: Names) -> tuple[set[str], set[str]]:
        """Ids of detections and of analyses that materialisations of the partition name."""
        found: dict[str, set[str]] = {"detection_id": set(), "analysis_id": set()}
        statement = sa.select(_logs.c.event).where(
            self._of_partition(names), _logs.c.dagster_event_type == _MATERIALIZATION
        )
        with self._events() as connection:
            for event in connection.execute(statement).scalars():
                for label, text in _texts(json.loads(event)):
                    if label in found:
                        found[label].add(text)
        return found["detection_id"], found["analysis_id"]

    def users(self, detection_ids: Collection[str]) -> dict[str, set[str]]:
        """Detections → the videos whose runs go by them, published or not."""
        found: dict[str, set[str]] = {}
        if not detection_ids:
            return found
        for run in self._instance.get_runs(dg.RunsFilter(tags={USED_TAG: sorted(detection_ids)})):
            video_id = run.tags.get(VIDEO_TAG) or run.tags.get(PARTITION_NAME_TAG)
            if video_id is not None:
                found.setdefault(run.tags[USED_TAG], set()).add(video_id)
        return found

    def asset_names(self) -> list[str]:
        """Every asset's name, as the references of the IO manager spell it."""
        with self._events() as connection:
            keys = connection.execute(sa.select(AssetKeyTable.c.asset_key)).scalars().all()
        found = (dg.AssetKey.from_db_string(key) for key in keys)
        return sorted(key.to_python_identifier() for key in found if key is not None)

    def running_backfills(self, names: Names) -> list[str]:
        """Ids of backfills that are not over and name the video."""
        statement = sa.select(BulkActionsTable.c.key).where(
            _names(BulkActionsTable.c.body, names), BulkActionsTable.c.status.not_in(_BACKFILL_OVER)
        )
        with self._runs() as connection:
            return list(connection.execute(statement).scalars())

    def sensors_that_remember(self, names: Names) -> list[str]:
        """Names of the sensors whose cursor names the video still."""
        if self._instance.schedule_storage is None:
            return []
        return sorted(
            state.instigator_name
            for state in self._instance.schedule_storage.all_instigator_state()
            if cursors.remembers(_cursor(state), names)
        )

    def forget_in_sensors(self, names: Names, *, dry_run: bool) -> Counter[str]:
        """Blot its name out of cursors that keep it for long, and remove the ticks that name it.

        A tick under way may bring either back: what its sensor began with was read before.
        """
        counts: Counter[str] = Counter()
        if self._instance.schedule_storage is None:
            return counts
        with self._schedules() as connection:
            # Dagster reads one of these tables, and writes both.
            for body in (InstigatorsTable.c.instigator_body, JobTable.c.job_body):
                for stored in connection.execute(sa.select(body)).scalars().all():
                    state = deserialize_value(stored, InstigatorState)
                    data, cursor = state.sensor_instigator_data, _cursor(state)
                    long = state.instigator_name == ENDED_RUNS_SENSOR or cursors.is_compressed(cursor)
                    if data is None or not long or not cursors.remembers(cursor, names):
                        continue
                    counts["cursors of sensors"] += body.table is InstigatorsTable
                    if not dry_run:
                        blotted = state.with_data(data._replace(cursor=cursors.without(cursor, names)))
                        # Only if its daemon has not written another one meanwhile.
                        unchanged = sa.update(body.table).where(body == stored)
                        connection.execute(unchanged.values({body.name: serialize_value(blotted)}))
        counts["ticks"] += self._remove_ticks(names, dry_run)
        return counts

    def remove(self, names: Names, runs: Sequence[RunTraces], *, dry_run: bool) -> Counter[str]:
        """Remove all records of the video, in an order in which a repetition finds what is left.

        Args:
            dry_run: only count.

        Returns:
            How many of each kind went, or would.
        """
        counts: Counter[str] = Counter()
        for run in runs:
            if run.own:
                self._remove_run(run, counts, dry_run)
            else:
                self._redact_run(run, names, counts, dry_run)
        with self._events() as connection:
            # Those that are left belong to no run, as sensors report them; by now no run needs to be found.
            # A dry run has counted the others above, and they are there still.
            elsewhere = _logs.c.run_id.not_in([run.run_id for run in runs])
            rest = sa.and_(self._of_partition(names), elsewhere)
            self._remove_events(connection, rest, counts, dry_run)
            checks = AssetCheckExecutionsTable
            named = sa.or_(checks.c.partition == names.video_id, _names(checks.c.evaluation_event, names))
            of_others = checks.c.run_id.not_in([run.run_id for run in runs if run.own])
            counts["asset check results"] += _remove(connection, checks, sa.and_(named, of_others), dry_run)
            counts["asset summaries"] += self._forget_newest(connection, names, dry_run)
        with self._runs() as connection:
            over = BulkActionsTable.c.status.in_(_BACKFILL_OVER)
            counts["backfills"] += _redact(connection, BulkActionsTable.c.body, names, over, dry_run)
            counts["notes of sensors"] += _redact(
                connection, KeyValueStoreTable.c.value, names, sa.true(), dry_run
            )
        if self._instance.schedule_storage is not None:
            counts += self.forget_in_sensors(names, dry_run=dry_run)
            with self._schedules() as connection:
                evaluated = _names(AssetDaemonAssetEvaluationsTable.c.asset_evaluation_body, names)
                counts["automation records"] += _remove(
                    connection, AssetDaemonAssetEvaluationsTable, evaluated, dry_run
                )
        if self._instance.has_dynamic_partition(PARTITIONS_NAME, names.video_id):
            counts["partitions"] += 1
            if not dry_run:
                self._instance.delete_dynamic_partition(PARTITIONS_NAME, names.video_id)
        return +counts

    def ended_before(self, before: datetime, tag: str) -> Iterator[tuple[str, str | None]]:
        """(run id, value of the tag) of runs that were over before, oldest first."""
        over = dg.RunsFilter(statuses=list(_FINISHED), updated_before=before)
        cursor = None
        while records := self._instance.get_run_records(
            over, limit=_PAGE, cursor=cursor, ascending=True, order_by="id"
        ):
            for record in records:
                yield record.dagster_run.run_id, record.dagster_run.tags.get(tag)
            cursor = records[-1].dagster_run.run_id

    def delete_run(self, run_id: str) -> None:
        """Delete a run with its events, checks and compute logs, in an order in which it is found again."""
        with self._events() as connection:
            checks = AssetCheckExecutionsTable
            connection.execute(sa.delete(checks).where(checks.c.run_id == run_id))
        self._instance.event_log_storage.delete_events(run_id)
        self._instance.compute_log_manager.delete_logs(prefix=[run_id])
        self._instance.run_storage.delete_run(run_id)

    def delete_log_entries(self, before: datetime, *, most: int, dry_run: bool) -> int:
        """Delete what runs logged before: lines, and what Dagster says of its own work; how many went.

        What tells a run's course, its materialisations and its checks stays until the run goes.
        """
        with self._events() as connection:
            last = self._last_event_before(connection, before)
            kinds = sa.or_(_logs.c.dagster_event_type.is_(None), _logs.c.dagster_event_type.in_(_CHATTER))
            which = sa.select(_logs.c.id).where(_logs.c.id <= last, kinds).order_by(_logs.c.id).limit(most)
            if dry_run:
                counted = sa.select(sa.func.count()).select_from(which.subquery())
                return int(connection.execute(counted).scalar_one())
            return connection.execute(sa.delete(_logs).where(_logs.c.id.in_(which))).rowcount

    @staticmethod
    def _last_event_before(connection: sa.Connection, before: datetime) -> int:
        """The id up to which events are older: their times have no index, and ids go along with them."""
        low, high = connection.execute(sa.select(sa.func.min(_logs.c.id), sa.func.max(_logs.c.id))).one()
        if low is None:
            return 0
        low, high = int(low) - 1, int(high)
        limit = before.astimezone(UTC).replace(tzinfo=None)
        while low < high:
            middle = (low + high + 1) // 2
            # Ids have gaps, where runs were deleted.
            at = sa.select(_logs.c.id, _logs.c.timestamp).where(_logs.c.id <= middle, _logs.c.id > low)
            found = connection.execute(at.order_by(_logs.c.id.desc()).limit(1)).first()
            if found is None or found.timestamp < limit:
                low = middle
            else:
                high = int(found.id) - 1
        return low

    def _remove_run(self, run: RunTraces, counts: Counter[str], dry_run: bool) -> None:
        """Whole; the run itself last, because its events are found by it."""
        run_id = run.run_id
        with self._events() as connection:
            self._remove_events(connection, _logs.c.run_id == run_id, counts, dry_run)
            checks = AssetCheckExecutionsTable
            counts["asset check results"] += _remove(connection, checks, checks.c.run_id == run_id, dry_run)
        counts["runs"] += 1
        if not dry_run:
            self.delete_run(run_id)

    def _redact_run(self, run: RunTraces, names: Names, counts: Counter[str], dry_run: bool) -> None:
        """Of a run about several videos: what names this one goes, or loses its name where others need it."""
        of_run = _logs.c.run_id == run.run_id
        named = sa.and_(of_run, _names(_logs.c.event, names))
        # Lines of the log, and what may show a picture.
        whole = sa.or_(
            _logs.c.dagster_event_type.is_(None),
            _logs.c.event.contains("data:image", autoescape=True),
        )
        kept = sa.or_(_logs.c.partition.is_(None), _logs.c.partition != names.video_id)
        with self._events() as connection:
            self._remove_events(connection, sa.and_(named, whole, kept), counts, dry_run)
            _redact(connection, _logs.c.event, names, sa.and_(of_run, kept), dry_run)
        with self._runs() as connection:
            this = RunTagsTable.c.run_id == run.run_id
            _redact(connection, RunTagsTable.c.value, names, this, dry_run)
        with self._events() as connection:
            of_video = sa.and_(of_run, _logs.c.partition == names.video_id)
            self._remove_events(connection, of_video, counts, dry_run)
        with self._runs() as connection:
            this = RunsTable.c.run_id == run.run_id
            _redact(connection, RunsTable.c.run_body, names, this, dry_run)
        counts["runs about others too"] += 1
        if not dry_run:
            self._instance.compute_log_manager.delete_logs(prefix=[run.run_id])

    def _remove_events(
        self,
        connection: sa.Connection,
        condition: sa.ColumnElement[bool],
        counts: Counter[str],
        dry_run: bool,
    ) -> None:
        which = sa.select(_logs.c.id).where(condition)
        if not dry_run:
            connection.execute(
                sa.delete(AssetEventTagsTable).where(AssetEventTagsTable.c.event_id.in_(which))
            )
        shown = sa.and_(condition, _logs.c.dagster_event_type == _MATERIALIZATION)
        counts["materialisations"] += _remove(connection, _logs, shown, dry_run)
        rest = sa.or_(_logs.c.dagster_event_type.is_(None), _logs.c.dagster_event_type != _MATERIALIZATION)
        counts["other event records"] += _remove(connection, _logs, sa.and_(condition, rest), dry_run)

    def _forget_newest(self, connection: sa.Connection, names: Names, dry_run: bool) -> int:
        """The newest materialisation is kept beside each asset, too; without it Dagster looks for it."""
        assets = AssetKeyTable
        named = sa.or_(
            _names(assets.c.last_materialization, names), _names(assets.c.cached_status_data, names)
        )
        if dry_run:
            counted = sa.select(sa.func.count()).select_from(assets).where(named)
            return int(connection.execute(counted).scalar_one())
        emptied = {"last_materialization": None, "cached_status_data": None}
        return connection.execute(sa.update(assets).where(named).values(emptied)).rowcount

    def _remove_ticks(self, names: Names, dry_run: bool) -> int:
        """Those that are over; what a tick under way says is deleted by a repetition."""
        over = JobTickTable.c.status != "STARTED"
        condition = sa.and_(over, _names(JobTickTable.c.tick_body, names))
        with self._schedules() as connection:
            if not dry_run:
                for body in connection.execute(
                    sa.select(JobTickTable.c.tick_body).where(condition)
                ).scalars():
                    key = deserialize_value(body, TickData).log_key
                    if key:
                        self._instance.compute_log_manager.delete_logs(log_key=key)
            return _remove(connection, JobTickTable, condition, dry_run)

    def _of_partition(self, names: Names) -> sa.ColumnElement[bool]:
        # The assets are named so that the index over (asset, type, partition) serves.
        assets = sa.select(AssetKeyTable.c.asset_key)
        return sa.and_(_logs.c.asset_key.in_(assets), _logs.c.partition == names.video_id)

    @contextmanager
    def _events(self) -> Iterator[sa.Connection]:
        with cast(SqlEventLogStorage, self._instance.event_log_storage).index_connection() as connection:
            yield connection

    @contextmanager
    def _runs(self) -> Iterator[sa.Connection]:
        with cast(SqlRunStorage, self._instance.run_storage).connect() as connection:
            yield connection

    @contextmanager
    def _schedules(self) -> Iterator[sa.Connection]:
        with cast(SqlScheduleStorage, self._instance.schedule_storage).connect() as connection:
            yield connection


def _cursor(state: InstigatorState) -> str:
    data = state.sensor_instigator_data
    return "" if data is None else data.cursor or ""


def _names(column: sa.Column[Any], names: Names) -> sa.ColumnElement[bool]:
    return sa.or_(*(column.contains(form, autoescape=True) for form in names.forms))


def _remove(
    connection: sa.Connection, table: sa.Table, condition: sa.ColumnElement[bool], dry_run: bool
) -> int:
    if dry_run:
        counted = sa.select(sa.func.count()).select_from(table).where(condition)
        return int(connection.execute(counted).scalar_one())
    return connection.execute(sa.delete(table).where(condition)).rowcount


def _redact(
    connection: sa.Connection,
    column: sa.Column[Any],
    names: Names,
    condition: sa.ColumnElement[bool],
    dry_run: bool,
) -> int:
    named = sa.and_(condition, _names(column, names))
    if dry_run:
        counted = sa.select(sa.func.count()).select_from(column.table).where(named)
        return int(connection.execute(counted).scalar_one())
    # The longest first: a name may be part of another.
    forms = sorted(names.forms, key=len, reverse=True)
    redacted = reduce(lambda text, form: sa.func.replace(text, form, DELETED), forms, cast(Any, column))
    table = column.table
    return connection.execute(sa.update(table).where(named).values({column.name: redacted})).rowcount


def _texts(value: Any) -> Iterable[tuple[str, str]]:
    """(label, text) of every text entry of metadata within a serialised event."""
    if isinstance(value, dict):
        label, entry = value.get("label"), value.get("entry_data")
        if isinstance(label, str) and isinstance(entry, dict) and isinstance(entry.get("text"), str):
            yield label, entry["text"]
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
