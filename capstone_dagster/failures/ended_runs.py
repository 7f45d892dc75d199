"""Read each ended run once, although Dagster's events may come to light out of order.

Events get their numbers before they are committed: one that is read may be followed by one with a smaller
number. Transactions take milliseconds, so what is older than the overlap has no straggler before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import dagster as dg

from capstone_dagster.dagster_private import RunStatusChangeEventType

# The sensor that reads them, in whose cursor everything about them is kept (`reactions.py`).
SENSOR_NAME = "ended_runs"

OVERLAP_S = 60.0
# Without a position, what ended in the last minutes counts: a daemon that was away missed it.
LOOK_BACK_S = 600.0
# A run whose end is on record and whose status never follows is judged by its next end, or never.
_FORGET_S = 3600.0
_EVENTS_AT_ONCE = 500
_ENDS: tuple[RunStatusChangeEventType, ...] = (
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELED,
)
_ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)

# Takes a run and the age of its end in seconds.
IsReady = Callable[[dg.DagsterRun, float], bool]


@dataclass(slots=True)
class Position:
    """How far the events of runs have been read. Times are seconds since 1970.

    Attributes:
        after: number of an event; all up to it are read.
        recent: number → time, of the events behind `after` that are read too.
        waiting: run id → when it ended, of ends that are read and not given out yet.
    """

    after: int
    recent: dict[int, float] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)

    @classmethod
    def beginning(cls, instance: dg.DagsterInstance, now: float) -> Position:
        """Now, with the runs that ended in the last minutes."""
        newest = instance.event_log_storage.get_maximum_record_id() or 0
        lately = dg.RunsFilter(
            statuses=list(_ENDED), updated_after=datetime.fromtimestamp(now - LOOK_BACK_S, UTC)
        )
        records = instance.get_run_records(lately, limit=_EVENTS_AT_ONCE)
        return cls(newest, waiting={record.dagster_run.run_id: record.end_time or now for record in records})


def read(instance: dg.DagsterInstance, position: Position, *, now: float) -> int:
    """Read on; ends go to `position.waiting`. Returns how many runs have started meanwhile.

    A long backlog is read in several ticks.
    """
    started = _read_kind(instance, position, dg.DagsterEventType.RUN_START, now)
    for kind in _ENDS:
        for entry in _read_kind(instance, position, kind, now):
            position.waiting.setdefault(entry.run_id, min(entry.timestamp, now))
    for number, at in sorted(position.recent.items()):
        if now - at > OVERLAP_S:
            position.after = max(position.after, number)
    position.recent = {number: at for number, at in position.recent.items() if number > position.after}
    return len(started)


def take_ready(
    instance: dg.DagsterInstance, position: Position, *, now: float, is_ready: IsReady
) -> list[dg.RunRecord]:
    """The waiting runs of which everything is known, oldest end first; they stay in `position.waiting` until
    :func:`done`.

    A run whose event is on record and whose status has not followed yet waits; one that was deleted, or that
    never ends after all, is forgotten.
    """
    ids = sorted(position.waiting, key=lambda run_id: position.waiting[run_id])[:_EVENTS_AT_ONCE]
    if not ids:
        return []
    found = instance.get_run_records(dg.RunsFilter(run_ids=ids))
    records = {record.dagster_run.run_id: record for record in found}
    ready = []
    for run_id in ids:
        record, age_s = records.get(run_id), now - position.waiting[run_id]
        if record is None or (record.dagster_run.status not in _ENDED and age_s > _FORGET_S):
            del position.waiting[run_id]
        elif record.dagster_run.status in _ENDED and is_ready(record.dagster_run, age_s):
            ready.append(record)
    return ready


def done(position: Position, run_id: str) -> None:
    """Do not give this end out again."""
    position.waiting.pop(run_id, None)


def _read_kind(
    instance: dg.DagsterInstance, position: Position, kind: RunStatusChangeEventType, now: float
) -> Sequence[dg.EventLogEntry]:
    """Events of one type that were not read yet, up to a number of pages."""
    fresh: list[dg.EventLogEntry] = []
    cursor = position.after
    while True:
        wanted = dg.RunStatusChangeRecordsFilter(kind, after_storage_id=cursor or None)
        events = instance.fetch_run_status_changes(wanted, limit=_EVENTS_AT_ONCE, ascending=True).records
        for event in events:
            if event.storage_id not in position.recent:
                # A clock that is ahead must not keep an event young.
                position.recent[event.storage_id] = min(event.event_log_entry.timestamp, now)
                fresh.append(event.event_log_entry)
        if len(events) < _EVENTS_AT_ONCE:
            return fresh
        cursor = events[-1].storage_id
