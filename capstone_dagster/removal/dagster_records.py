"""What Dagster's storage holds of a video: finding, counting and removing it.

`record_table` lists the rows; what needs more than a statement is here: runs, sensors' cursors, partitions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import dagster as dg
import sqlalchemy as sa

from capstone_dagster.dagster_private import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    AssetCheckExecutionsTable,
    AssetKeyTable,
    BulkActionsTable,
    InstigatorsTable,
    InstigatorState,
    JobTable,
    JobTickTable,
    RunsTable,
    RunTagsTable,
    SqlEventLogStorage,
    SqlRunStorage,
    SqlScheduleStorage,
    TickData,
    deserialize_value,
    serialize_value,
)
from capstone_dagster.failures.ended_runs import SENSOR_NAME as ENDED_RUNS_SENSOR
from capstone_dagster.intake.runs import PARTITIONS_NAME
from capstone_dagster.removal import cursors
from capstone_dagster.removal.names import Names
from capstone_dagster.removal.record_table import (
    BACKFILL_IS_OVER,
    EVENTS,
    MATERIALIZED,
    Removal,
    ended_ticks,
    names_it,
    of_own_run,
    of_partition,
    of_shared_run,
    of_video,
)
from capstone_dagster.run_tags import DETECTION_TAG, STORED_TAG, USED_TAG, VIDEO_TAG
from capstone_dagster.settings import ConfigurationError

FINISHED = {
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
}
_RANGE_TAGS = {ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG}


@dataclass(frozen=True, slots=True)
class RunTraces:
    """A run that names the video.

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
        """Every run that names the video.

        Args:
            known: ids of runs that the event store names.
        """
        found = set(known)
        with self.connection(RunsTable) as connection:
            body = sa.select(RunsTable.c.run_id).where(names_it(RunsTable.c.run_body, names.ids))
            tagged = sa.select(RunTagsTable.c.run_id).where(RunTagsTable.c.value == names.video_id)
            for statement in (body, tagged):
                found.update(connection.execute(statement).scalars())
        with self.connection(EVENTS) as connection:
            found.update(connection.execute(sa.select(EVENTS.c.run_id).where(of_partition(names))).scalars())
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
            others = sa.select(EVENTS.c.id).where(
                EVENTS.c.run_id == run.run_id,
                EVENTS.c.partition.is_not(None),
                EVENTS.c.partition != names.video_id,
            )
            with self.connection(EVENTS) as connection:
                own = connection.execute(others.limit(1)).first() is None
        named = (DETECTION_TAG, STORED_TAG, USED_TAG) if own else ()
        work = {run.tags[tag] for tag in named if tag in run.tags}
        return RunTraces(run.run_id, run.status in FINISHED, own, frozenset(work))

    def work(self, names: Names) -> tuple[set[str], set[str]]:
        """Ids of detections and of analyses that materialisations of the partition name."""
        found: dict[str, set[str]] = {"detection_id": set(), "analysis_id": set()}
        statement = sa.select(EVENTS.c.event).where(of_partition(names), MATERIALIZED)
        with self.connection(EVENTS) as connection:
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
        with self.connection(EVENTS) as connection:
            keys = connection.execute(sa.select(AssetKeyTable.c.asset_key)).scalars().all()
        found = (dg.AssetKey.from_db_string(key) for key in keys)
        return sorted(key.to_python_identifier() for key in found if key is not None)

    def running_backfills(self, names: Names) -> list[str]:
        """Ids of backfills that are not over and name the video."""
        statement = sa.select(BulkActionsTable.c.key).where(
            names_it(BulkActionsTable.c.body, names), sa.not_(BACKFILL_IS_OVER)
        )
        with self.connection(RunsTable) as connection:
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
        """Redact cursors that keep the name for long, and remove the ticks that name it.

        A tick under way may bring either back: what its sensor began with was read before.
        """
        counts: Counter[str] = Counter()
        if self._instance.schedule_storage is None:
            return counts
        with self.connection(InstigatorsTable) as connection:
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
                        redacted = state.with_data(data._replace(cursor=cursors.without(cursor, names)))
                        # Only if its daemon has not written another one meanwhile.
                        unchanged = sa.update(body.table).where(body == stored)
                        connection.execute(unchanged.values({body.name: serialize_value(redacted)}))
            ticks = ended_ticks(names)
            bodies = connection.execute(sa.select(JobTickTable.c.tick_body).where(ticks.condition))
            for log_key in (deserialize_value(body, TickData).log_key for body in bodies.scalars()):
                if log_key and not dry_run:
                    self._instance.compute_log_manager.delete_logs(log_key=log_key)
        return counts + self._apply([ticks], dry_run)

    def remove(self, names: Names, runs: Sequence[RunTraces], *, dry_run: bool) -> Counter[str]:
        """Remove all records of the video, in an order in which a repetition finds what is left.

        Args:
            dry_run: only count.

        Returns:
            How many of each kind went, or would.
        """
        counts: Counter[str] = Counter()
        own = [run.run_id for run in runs if run.own]
        for run_id in own:
            counts += self._apply(of_own_run(run_id), dry_run) + Counter({"runs": 1})
            if not dry_run:
                self.delete_run(run_id)
        for run_id in (run.run_id for run in runs if not run.own):
            counts += self._apply(of_shared_run(run_id, names), dry_run)
            counts["runs about others too"] += 1
            if not dry_run:
                self._instance.compute_log_manager.delete_logs(prefix=[run_id])
        counts += self._apply(of_video(names, [run.run_id for run in runs], own), dry_run)
        counts += self.forget_in_sensors(names, dry_run=dry_run)
        if self._instance.has_dynamic_partition(PARTITIONS_NAME, names.video_id):
            counts["partitions"] += 1
            if not dry_run:
                self._instance.delete_dynamic_partition(PARTITIONS_NAME, names.video_id)
        return counts

    def delete_run(self, run_id: str) -> None:
        """Delete a run with its events, checks and compute logs, in an order in which it is found again."""
        with self.connection(AssetCheckExecutionsTable) as connection:
            checks = AssetCheckExecutionsTable
            connection.execute(sa.delete(checks).where(checks.c.run_id == run_id))
        self._instance.event_log_storage.delete_events(run_id)
        self._instance.compute_log_manager.delete_logs(prefix=[run_id])
        self._instance.run_storage.delete_run(run_id)

    def _apply(self, removals: Sequence[Removal], dry_run: bool) -> Counter[str]:
        """Count the rows, or execute; one transaction for each of Dagster's storages in turn."""
        counts: Counter[str] = Counter()
        for metadata, group in groupby(removals, key=lambda each: each.table.metadata):
            if metadata is JobTable.metadata and self._instance.schedule_storage is None:
                continue
            of_storage = list(group)
            with self.connection(of_storage[0].table) as connection:
                for each in of_storage:
                    counts[each.label] += each.count(connection) if dry_run else each.execute(connection)
        del counts[""]
        return +counts

    @contextmanager
    def connection(self, table: sa.Table) -> Iterator[sa.Connection]:
        """A transaction in the storage that a table is part of."""
        if table.metadata is EVENTS.metadata:
            opened = cast(SqlEventLogStorage, self._instance.event_log_storage).index_connection()
        elif table.metadata is RunsTable.metadata:
            opened = cast(SqlRunStorage, self._instance.run_storage).connect()
        else:
            opened = cast(SqlScheduleStorage, self._instance.schedule_storage).connect()
        with opened as connection:
            yield connection


def _cursor(state: InstigatorState) -> str:
    data = state.sensor_instigator_data
    return "" if data is None else data.cursor or ""


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
