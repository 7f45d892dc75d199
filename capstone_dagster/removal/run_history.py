"""Old runs and old lines of their logs in Dagster's storage, which Dagster itself keeps for ever."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import sqlalchemy as sa

from capstone_dagster.removal.dagster_records import FINISHED, DagsterRecords
from capstone_dagster.removal.record_table import EVENTS

# Besides log lines: events that a run has many of and that serve no purpose once it is old.
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


def ended_before(
    instance: dg.DagsterInstance, before: datetime, tag: str
) -> Iterator[tuple[str, str | None]]:
    """(run id, value of the tag) of runs that were over before, oldest first."""
    over = dg.RunsFilter(statuses=list(FINISHED), updated_before=before)
    cursor = None
    while records := instance.get_run_records(
        over, limit=_PAGE, cursor=cursor, ascending=True, order_by="id"
    ):
        for record in records:
            yield record.dagster_run.run_id, record.dagster_run.tags.get(tag)
        cursor = records[-1].dagster_run.run_id


def delete_log_entries(records: DagsterRecords, before: datetime, *, most: int, dry_run: bool) -> int:
    """Delete lines that runs logged before, and what Dagster logged of its own work; how many went.

    The events of a run's course, its materialisations and its checks stay until the run goes.
    """
    with records.connection(EVENTS) as connection:
        last = _last_event_before(connection, before)
        kinds = sa.or_(EVENTS.c.dagster_event_type.is_(None), EVENTS.c.dagster_event_type.in_(_CHATTER))
        which = sa.select(EVENTS.c.id).where(EVENTS.c.id <= last, kinds).order_by(EVENTS.c.id).limit(most)
        if dry_run:
            counted = sa.select(sa.func.count()).select_from(which.subquery())
            return int(connection.execute(counted).scalar_one())
        return connection.execute(sa.delete(EVENTS).where(EVENTS.c.id.in_(which))).rowcount


def _last_event_before(connection: sa.Connection, before: datetime) -> int:
    """The id up to which events are older: their times have no index, and ids go along with them."""
    low, high = connection.execute(sa.select(sa.func.min(EVENTS.c.id), sa.func.max(EVENTS.c.id))).one()
    if low is None:
        return 0
    low, high = int(low) - 1, int(high)
    limit = before.astimezone(UTC).replace(tzinfo=None)
    while low < high:
        middle = (low + high + 1) // 2
        # Ids have gaps, where runs were deleted.
        at = sa.select(EVENTS.c.id, EVENTS.c.timestamp).where(EVENTS.c.id <= middle, EVENTS.c.id > low)
        found = connection.execute(at.order_by(EVENTS.c.id.desc()).limit(1)).first()
        if found is None or found.timestamp < limit:
            low = middle
        else:
            high = int(found.id) - 1
    return low
