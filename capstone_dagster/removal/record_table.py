"""Which of Dagster's rows name a video, and what happens to each: one list, counted or executed.

Rows about the video alone are deleted; rows that others need lose its name. These are statements on Dagster's
tables as dagster 1.13 has them, because its own interface deletes runs and partitions only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import dagster as dg
import sqlalchemy as sa

from capstone_dagster.dagster_private import (
    AssetCheckExecutionsTable,
    AssetDaemonAssetEvaluationsTable,
    AssetEventTagsTable,
    AssetKeyTable,
    BulkActionsTable,
    JobTickTable,
    KeyValueStoreTable,
    RunsTable,
    RunTagsTable,
    SqlEventLogStorageTable,
)
from capstone_dagster.removal.names import DELETED, Names

EVENTS = SqlEventLogStorageTable
MATERIALIZED = EVENTS.c.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION.value
# A backfill that still makes runs needs its partitions by their names.
BACKFILL_IS_OVER = BulkActionsTable.c.status.in_(
    ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")
)
_OTHER = sa.or_(EVENTS.c.dagster_event_type.is_(None), sa.not_(MATERIALIZED))
_CHECKS = AssetCheckExecutionsTable


@dataclass(frozen=True, slots=True)
class Removal:
    """One statement.

    Attributes:
        label: what the rows are, for people; rows without a label are not counted.
        condition: which rows of the table it takes.
        values: what they hold afterwards; None deletes them.
    """

    label: str
    table: sa.Table
    condition: sa.ColumnElement[bool]
    values: Mapping[str, Any] | None = None

    def count(self, connection: sa.Connection) -> int:
        """How many rows it takes."""
        counted = sa.select(sa.func.count()).select_from(self.table).where(self.condition)
        return int(connection.execute(counted).scalar_one())

    def execute(self, connection: sa.Connection) -> int:
        """Delete or change them; how many there were."""
        if self.values is None:
            return connection.execute(sa.delete(self.table).where(self.condition)).rowcount
        return connection.execute(sa.update(self.table).where(self.condition).values(self.values)).rowcount


def names_it(column: sa.Column[Any], names: Names) -> sa.ColumnElement[bool]:
    """The column holds a spelling of one of the names."""
    return sa.or_(*(column.contains(form, autoescape=True) for form in names.forms))


def of_partition(names: Names) -> sa.ColumnElement[bool]:
    """Events of the video's partition."""
    # The assets are named so that the index over (asset, type, partition) serves.
    assets = sa.select(AssetKeyTable.c.asset_key)
    return sa.and_(EVENTS.c.asset_key.in_(assets), EVENTS.c.partition == names.video_id)


def of_own_run(run_id: str) -> list[Removal]:
    """What a run about the video alone has written; Dagster then deletes the run itself."""
    return [
        *_events(EVENTS.c.run_id == run_id),
        Removal("asset check results", _CHECKS, _CHECKS.c.run_id == run_id),
    ]


def of_shared_run(run_id: str, names: Names) -> list[Removal]:
    """Of a run about several videos: what names this one goes, or loses its name where others need it.

    The run's body comes last, because the run is found by it.
    """
    of_run = EVENTS.c.run_id == run_id
    of_others = sa.and_(of_run, sa.or_(EVENTS.c.partition.is_(None), EVENTS.c.partition != names.video_id))
    # Lines of the log, and what may show a picture.
    whole = sa.or_(
        EVENTS.c.dagster_event_type.is_(None), EVENTS.c.event.contains("data:image", autoescape=True)
    )
    return [
        *_events(sa.and_(of_others, whole, names_it(EVENTS.c.event, names))),
        _redaction("", EVENTS.c.event, names, of_others),
        *_events(sa.and_(of_run, EVENTS.c.partition == names.video_id)),
        _redaction("", RunTagsTable.c.value, names, RunTagsTable.c.run_id == run_id),
        _redaction("", RunsTable.c.run_body, names, RunsTable.c.run_id == run_id),
    ]


def of_video(names: Names, runs: Collection[str], own_runs: Collection[str]) -> list[Removal]:
    """What belongs to no run, as where sensors report it, or outlives it.

    Args:
        runs: ids of the runs that :func:`of_own_run` and :func:`of_shared_run` take care of.
        own_runs: those of them that are about the video alone.
    """
    assets, checks, evaluations = AssetKeyTable, _CHECKS, AssetDaemonAssetEvaluationsTable
    return [
        *_events(sa.and_(of_partition(names), EVENTS.c.run_id.not_in(runs))),
        Removal(
            "asset check results",
            checks,
            sa.and_(
                sa.or_(checks.c.partition == names.video_id, names_it(checks.c.evaluation_event, names)),
                checks.c.run_id.not_in(own_runs),
            ),
        ),
        # The newest materialisation is kept beside each asset, too; without it Dagster looks for it.
        Removal(
            "asset summaries",
            assets,
            sa.or_(
                names_it(assets.c.last_materialization, names), names_it(assets.c.cached_status_data, names)
            ),
            {"last_materialization": None, "cached_status_data": None},
        ),
        _redaction("backfills", BulkActionsTable.c.body, names, BACKFILL_IS_OVER),
        _redaction("notes of sensors", KeyValueStoreTable.c.value, names, sa.true()),
        Removal("automation records", evaluations, names_it(evaluations.c.asset_evaluation_body, names)),
    ]


def ended_ticks(names: Names) -> Removal:
    """Ticks that are over; what a tick under way says is deleted by a repetition."""
    over = JobTickTable.c.status != "STARTED"
    return Removal("ticks", JobTickTable, sa.and_(over, names_it(JobTickTable.c.tick_body, names)))


def _events(condition: sa.ColumnElement[bool]) -> list[Removal]:
    tags = AssetEventTagsTable
    return [
        Removal("", tags, tags.c.event_id.in_(sa.select(EVENTS.c.id).where(condition))),
        Removal("materialisations", EVENTS, sa.and_(condition, MATERIALIZED)),
        Removal("other event records", EVENTS, sa.and_(condition, _OTHER)),
    ]


def _redaction(
    label: str, column: sa.Column[Any], names: Names, condition: sa.ColumnElement[bool]
) -> Removal:
    # The longest first: a name may be part of another.
    forms = sorted(names.forms, key=len, reverse=True)
    redacted = reduce(lambda text, form: sa.func.replace(text, form, DELETED), forms, cast(Any, column))
    named = sa.and_(condition, names_it(column, names))
    return Removal(label, column.table, named, {column.name: redacted})
