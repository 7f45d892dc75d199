"""The sensor that brings what Dagster records outside of runs to the log lines of the runs.

The record, not its type, says who writes which line of a run, for engine events and ends of runs come
from both sides:

- what passed a run's log handlers was written there and then by `RunLogHandler`: the record has the message
  that was logged, or the process that logged it;
- everything else was reported straight to Dagster's storage, where no Python handler sees it, and is
  forwarded here: queued, dequeued and launched runs, the launcher's words and errors, run monitoring's
  verdicts (a lost worker), cancellations, what sensors say of assets. So are the ticks of sensors and
  schedules.

At least once: a tick that fails forwards the same again.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorTick, InstigatorType, TickStatus

from capstone_dagster.failures.classes import POLICIES, classify_recorded
from capstone_dagster.failures.cursors import known_fields
from capstone_dagster.failures.verdicts import outcome_of
from capstone_dagster.logs.json_lines import json_line, style_of, utc
from capstone_dagster.logs.redaction import Redaction, known_secrets
from capstone_dagster.logs.run_fields import (
    ENDINGS,
    Fields,
    error_text,
    event_fields,
    run_fields,
)
from capstone_dagster.logs.standard_output import standard_output
from capstone_dagster.settings import Settings

if TYPE_CHECKING:
    from dagster._core.storage.dagster_run import RunRecord

SENSOR_NAME = "run_events_forwarder"

# Of a tick's second: what is left over waits for the next one.
_BUDGET_S = 0.7
# Reading one takes about 0.2 ms, most of it for unpacking.
_EVENTS_AT_ONCE = 500
_TICKS_AT_ONCE = 200
# Records get their numbers before they are committed: one that is read may be followed by one with a smaller
# number. Statements take milliseconds.
_OVERLAP_S = 5.0
# A tick ends within 60 s, or its daemon is gone and nobody will ever finish its record.
_TICK_LIFE_S = 120.0
# Of what was recorded before the sensor first looked, so much is forwarded.
_LOOK_BACK = 500

_TICK_ACTIONS = {InstigatorType.SENSOR: "sensor.ticked", InstigatorType.SCHEDULE: "schedule.ticked"}
_TICK_LEVELS = {
    TickStatus.SKIPPED: logging.DEBUG,
    TickStatus.SUCCESS: logging.INFO,
    TickStatus.FAILURE: logging.ERROR,
}
# Dagster plans each asset of each run; that helps only to find a fault in Dagster.
_FOR_DEVELOPERS = {"ASSET_MATERIALIZATION_PLANNED", "ASSET_CHECK_EVALUATION_PLANNED"}


class Needs(Protocol):
    """What the sensor uses of what the code location shares."""

    @property
    def settings(self) -> Settings: ...


class Output(Protocol):
    """Where lines go; :class:`~capstone_dagster.logs.standard_output.StandardOutput` is one."""

    def write(self, line: str) -> bool: ...


@dataclass(slots=True)
class Position:
    """How far has been read.

    Attributes:
        event: number of a record of the event log; all up to it are forwarded.
        recent: numbers behind `event` that are forwarded too.
        tick: number of a tick; all up to it are forwarded, or waited for.
        open: number → since when it has been waited for, seconds since 1970: ticks that have not ended, or
            are not to be seen yet.
    """

    event: int
    tick: int
    recent: list[int] = field(default_factory=list)
    open: dict[int, float] = field(default_factory=dict)

    @classmethod
    def read(cls, cursor: str) -> Position:
        """What an earlier tick kept, be it of a later version that was rolled back."""
        kept = known_fields(cls, json.loads(cursor))
        kept["open"] = {int(number): since for number, since in kept["open"].items()}
        return cls(**kept)

    def write(self) -> str:
        """For the cursor."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dg.sensor(
    name=SENSOR_NAME,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"services"},
    description="Forwards what Dagster records outside of runs (queueing, launching, run monitoring, ticks) "
    "to the log lines of the code location.",
)
def run_events_forwarder(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """See the module."""
    settings = cast(Needs, context.resources.services).settings
    if style_of(settings, sys.stdout) != "json":
        return dg.SkipReason("Log lines are text, for people: nothing is forwarded.")
    position = Position.read(context.cursor) if context.cursor else beginning(context.instance)
    redaction = Redaction(known_secrets(settings))
    summary = forward(context.instance, position, standard_output(), redaction, budget_s=_BUDGET_S)
    context.update_cursor(position.write())
    return dg.SkipReason(summary)


def beginning(instance: dg.DagsterInstance) -> Position:
    """Where a sensor without a cursor begins: a little before now."""
    newest = instance.event_log_storage.get_maximum_record_id() or 0
    return Position(max(0, newest - _LOOK_BACK), max(0, _newest_tick(instance) - _LOOK_BACK))


def forward(
    instance: dg.DagsterInstance,
    position: Position,
    output: Output,
    redaction: Redaction,
    *,
    budget_s: float = _BUDGET_S,
) -> str:
    """Forward what is new, as far as it comes in the time; returns a sentence that says what it was.

    `position` moves on with what was taken. What standard output does not take is tried again. DEBUG lines
    are left out: skipped ticks alone would be 50 MB a day.
    """
    over = time.monotonic() + budget_s
    taken = {"events": 0, "ticks": 0}
    is_full = False

    def write(kind: str, fields: Fields) -> bool:
        nonlocal is_full
        if fields["level"] == "DEBUG":
            return True
        is_full = is_full or not output.write(json_line(fields, redaction))
        taken[kind] += not is_full
        return not is_full

    after = position.event
    while not is_full:
        records = instance.event_log_storage.get_logs_for_all_runs_by_log_id(after, limit=_EVENTS_AT_ONCE)
        fresh = _unforwarded(records, position)
        runs = _runs_of(instance, fresh.values())
        for number, entry in fresh.items():
            if not write("events", _told(instance, number, entry, runs.get(entry.run_id))):
                break
            position.recent.append(number)
        else:
            _settle(records, position)
            after = max(records, default=after)
            if len(records) < _EVENTS_AT_ONCE or time.monotonic() > over:
                break
    while not is_full:
        ticks, is_all = _read_ticks(instance, position)
        for tick in ticks:
            if not write("ticks", _tick_line(tick)):
                break
            position.open.pop(tick.tick_id, None)
        else:
            if is_all or time.monotonic() > over:
                break
    summary = f"{taken['events']} events and {taken['ticks']} ticks forwarded."
    return f"{summary} Standard output takes no more: the rest waits." if is_full else summary


def _unforwarded(
    records: Mapping[int, dg.EventLogEntry], position: Position
) -> Mapping[int, dg.EventLogEntry]:
    known = set(position.recent)
    return {
        number: entry
        for number, entry in records.items()
        if number not in known and not was_logged_by_run(entry)
    }


def _settle(records: Mapping[int, dg.EventLogEntry], position: Position) -> None:
    """Move on behind what is so old that no smaller number can follow."""
    now = time.time()
    for number, entry in records.items():
        if now - entry.timestamp < _OVERLAP_S:
            break
        position.event = number
    position.recent = [number for number in position.recent if number > position.event]


def was_logged_by_run(entry: dg.EventLogEntry) -> bool:
    """Whether a record passed the log handlers of its run, one of which has written its line."""
    event = entry.dagster_event
    return bool(entry.user_message) or (event is not None and event.pid is not None)


def _runs_of(instance: dg.DagsterInstance, entries: Iterable[dg.EventLogEntry]) -> Mapping[str, RunRecord]:
    run_ids = sorted({entry.run_id for entry in entries if entry.run_id})
    records = instance.get_run_records(dg.RunsFilter(run_ids=run_ids)) if run_ids else []
    return {record.dagster_run.run_id: record for record in records}


def _told(
    instance: dg.DagsterInstance, number: int, entry: dg.EventLogEntry, record: RunRecord | None
) -> Fields:
    """A record's line; one that cannot be understood must not hold up all that follow."""
    try:
        return _event_line(instance, number, entry, record)
    except Exception as error:
        return {
            "timestamp": utc(entry.timestamp),
            "level": "WARNING",
            "component": "dagster",
            "action": "record.unreadable",
            "message": f"A record of Dagster's could not be read: {type(error).__name__}: {error}",
            "record": number,
            "run_id": entry.run_id or None,
        }


def _event_line(
    instance: dg.DagsterInstance, number: int, entry: dg.EventLogEntry, record: RunRecord | None
) -> Fields:
    fields: Fields = {
        "timestamp": utc(entry.timestamp),
        "level": logging.getLevelName(entry.level),
        "component": "dagster",
        "action": "log",
        "message": entry.message or "",
        "record": number,
        "job": entry.job_name,
        "run_id": entry.run_id or None,
    }
    event = entry.dagster_event
    run = record.dagster_run if record is not None else None
    if run is not None:
        fields |= run_fields(run.run_id, run.tags)
    if event is None:
        return fields
    fields |= event_fields(event)
    fields["message"] = fields["message"] or fields["action"]
    if event.event_type_value in _FOR_DEVELOPERS:
        fields["level"] = "DEBUG"
    if event.event_type_value in ENDINGS and record is not None and record.start_time is not None:
        fields["elapsed_s"] = round(entry.timestamp - record.start_time, 3)
    if event.event_type_value == "PIPELINE_FAILURE" and record is not None and "failure_class" not in fields:
        _, cause = outcome_of(instance, record)
        if cause is not None:
            fields |= {"failure_class": cause.failure.value, "cause": cause.sentence}
            fields |= {"remedy": POLICIES[cause.failure].remedy}
    return fields


def _read_ticks(instance: dg.DagsterInstance, position: Position) -> tuple[list[InstigatorTick], bool]:
    """Ticks that have ended since, in their order, and whether there are no more."""
    storage = instance.schedule_storage
    if storage is None:
        return [], True
    now = time.time()
    position.open = {number: since for number, since in position.open.items() if now - since < _TICK_LIFE_S}
    window = range(position.tick + 1, position.tick + 1 + _TICKS_AT_ONCE)
    found = {tick.tick_id: tick for tick in storage.get_ticks_by_ids([*position.open, *window])}
    last = max((number for number in found if number in window), default=None)
    if last is None:
        # Nothing new; or a gap wider than the window, where old ticks were deleted.
        is_all = _newest_tick(instance) <= window[-1]
        position.tick = position.tick if is_all else window[-1]
        return _ended(found.values()), is_all
    since = min(now, found[last].timestamp)
    position.open |= dict.fromkeys(range(position.tick + 1, last + 1), since)
    position.tick = last
    return _ended(found.values()), last < window[-1]


def _ended(ticks: Iterable[InstigatorTick]) -> list[InstigatorTick]:
    ended = [tick for tick in ticks if tick.status != TickStatus.STARTED]
    return sorted(ended, key=lambda tick: tick.tick_id)


def _newest_tick(instance: dg.DagsterInstance) -> int:
    states: Sequence[Any] = instance.all_instigator_state()
    selectors = [state.selector_id for state in states]
    if not selectors:
        return 0
    latest: Iterator[InstigatorTick] = (
        tick for ticks in instance.get_batch_ticks(selectors, limit=1).values() for tick in ticks
    )
    return max((tick.tick_id for tick in latest), default=0)


def _tick_line(tick: InstigatorTick) -> Fields:
    data = tick.tick_data
    fields: Fields = {
        "timestamp": utc(data.end_timestamp or data.timestamp),
        "level": logging.getLevelName(_TICK_LEVELS.get(data.status, logging.INFO)),
        "component": "dagster",
        "action": _TICK_ACTIONS.get(data.instigator_type, "instigator.ticked"),
        "sensor": data.instigator_name,
        "tick": tick.tick_id,
        "status": data.status.value.lower(),
        "runs": len(data.run_ids),
        "run_ids": list(data.run_ids[:20]) or None,
    }
    if data.end_timestamp is not None:
        fields["elapsed_s"] = round(data.end_timestamp - data.timestamp, 3)
    if data.error is not None:
        fields["message"] = f"A tick of {data.instigator_name} failed: {data.error.message.strip()}"
        fields["exception"] = error_text(data.error)
        fields["failure_class"] = classify_recorded(data.error)
    else:
        summary = data.skip_reason or f"{len(data.run_ids)} runs asked for."
        fields["message"] = f"{data.instigator_name}: {summary}"
    return fields
