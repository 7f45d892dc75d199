"""Events of runs, each read once, although they may come to light out of order.

Events get their numbers before they are committed: one that is read may be followed by one with a smaller
number. Transactions take milliseconds; what is as old as the overlap has no straggler before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import dagster as dg
from dagster._core.event_api import RunStatusChangeEventType

OVERLAP_S = 120.0
_EVENTS_AT_ONCE = 500

# Takes a run and the age of its event in seconds.
IsReady = Callable[[dg.DagsterRun, float], bool]


@dataclass(slots=True)
class Position:
    """How far events of one type have been read. Times are seconds since 1970.

    Attributes:
        since: nothing before this time counts.
        after: number of an event; all up to it are read.
        recent: run id → (number, when it was read), of events behind `after` that are read too.
        left: number of the first event that was seen and left for later; 0 if none was.
    """

    since: float
    after: int = 0
    recent: dict[str, tuple[int, float]] = field(default_factory=dict)
    left: int = 0

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Position:
        """What :meth:`to_json` made, be it of a later version that was rolled back."""
        recent = {run: (int(number), float(read)) for run, (number, read) in kept["recent"].items()}
        return cls(kept["since"], kept["after"], recent, kept["left"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened to a run.

    Attributes:
        at: seconds since 1970.
        record: the run's; None if it was deleted meanwhile.
    """

    at: float
    record: dg.RunRecord | None

    @property
    def run(self) -> dg.DagsterRun | None:
        return None if self.record is None else self.record.dagster_run


def unread(
    instance: dg.DagsterInstance,
    kind: RunStatusChangeEventType,
    position: Position,
    *,
    now: float,
    is_ready: IsReady | None = None,
) -> Iterator[RunEvent]:
    """Events that were not read yet, one a run, oldest first.

    `position` moves on with each as it is given out: whoever takes them may stop anywhere, and gets the rest
    the next time.

    Args:
        now: seconds since 1970.
        is_ready: whether there is all to know of an event's run already; else it is left for later.
    """
    _forget_old(position, now)
    cursor, left = position.after, list[int]()
    while True:
        wanted = dg.RunStatusChangeRecordsFilter(
            kind, after_timestamp=position.since, after_storage_id=cursor or None
        )
        events = instance.fetch_run_status_changes(wanted, limit=_EVENTS_AT_ONCE, ascending=True).records
        fresh = {
            event.event_log_entry.run_id: event
            for event in events
            if event.event_log_entry.run_id not in position.recent
        }
        runs = _records(instance, list(fresh))
        ready: list[tuple[int, str, RunEvent]] = []
        for run_id, event in fresh.items():
            told = RunEvent(event.event_log_entry.timestamp, runs.get(run_id))
            if is_ready is None or told.run is None or is_ready(told.run, now - told.at):
                ready.append((event.storage_id, run_id, told))
            else:
                left.append(event.storage_id)
        ready.sort(key=lambda each: each[0])
        is_last = len(events) < _EVENTS_AT_ONCE
        behind = [] if is_last else [events[-1].storage_id + 1]
        for index, (number, run_id, told) in enumerate(ready):
            position.recent[run_id] = (number, now)
            # Whoever takes them may stop here: then the rest is left.
            rest = [ready[index + 1][0]] if index + 1 < len(ready) else behind
            position.left = min([*left, *rest], default=0)
            yield told
        if is_last:
            position.left = min(left, default=0)
            return
        cursor = events[-1].storage_id


def _forget_old(position: Position, now: float) -> None:
    # However long nobody looked, what was left for later stays before what is remembered.
    old = {
        run_id: number
        for run_id, (number, read) in position.recent.items()
        if now - read > OVERLAP_S and not 0 < position.left < number
    }
    position.after = max([position.after, *old.values()])
    for run_id in old:
        del position.recent[run_id]


def _records(instance: dg.DagsterInstance, run_ids: list[str]) -> dict[str, dg.RunRecord]:
    if not run_ids:
        return {}
    records = instance.get_run_records(dg.RunsFilter(run_ids=run_ids))
    return {record.dagster_run.run_id: record for record in records}
