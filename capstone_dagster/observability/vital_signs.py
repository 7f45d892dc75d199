"""The sensor `vital_signs`: what only an onlooker sees of runs, queues and sensors, as metrics.

A worker that is killed, hangs or never starts says nothing of itself. This sensor looks at Dagster's own
records and at SQS, never at the event store, which may be what has failed; what cannot be looked at is left
out of a tick and does not hold up the rest. A tick whose cursor is not stored counts its runs once more.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

import dagster as dg
from dagster._core.event_api import RunStatusChangeEventType
from dagster._core.scheduler.instigation import InstigatorStatus, InstigatorType, TickStatus

from capstone_dagster.observability.breaker_state import read_breaker
from capstone_dagster.observability.catalog.metrics import (
    DEAD_LETTERS,
    INTAKE_PAUSED,
    LONGEST_RUN_OVER_LIMIT,
    RUN_DURATION,
    RUNS_FAILED,
    RUNS_QUEUED,
    RUNS_STARTED,
    RUNS_SUCCEEDED,
    SECONDS_WITHOUT_SUCCESS,
    SENSOR_TICK_DURATION,
    SENSOR_TICK_ERRORS,
)
from capstone_dagster.observability.duplicates import VIDEO_SECONDS_TAG
from capstone_dagster.observability.failed_runs import (
    failure_of,
    is_explained,
    retry_is_decided,
    starts_again,
)
from capstone_dagster.observability.metrics import Metrics
from capstone_dagster.observability.waiting_messages import Queues, queues_at
from capstone_dagster.settings import Settings

SENSOR_NAME = "vital_signs"

log = logging.getLogger("capstone.vital_signs")

# Events get their numbers before they are committed: one that is read may be followed by one with a smaller
# number. Transactions take milliseconds; behind what was read so long ago nothing comes any more.
_OVERLAP_S = 60.0
_EVENTS_AT_ONCE = 500
# Of one sensor's ticks between two looks: it ticks every few seconds. Dagster cuts one off after 60 s.
_TICKS_AT_ONCE = 100
_LONGEST_TICK_S = 90.0
# Classifying a failed run takes some 5 ms. What is left is the next tick's.
_BUDGET_S = 5.0

# Takes a run and the age of its event in seconds.
IsReady = Callable[[dg.DagsterRun, float], bool]

# Not what was only put on record: whoever did that may have died before submitting it, and it stays for ever.
_IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


class Needs(Protocol):
    """What the sensor uses of what the code location shares."""

    @property
    def settings(self) -> Settings: ...
    @property
    def metrics(self) -> Metrics: ...


@dataclass(slots=True)
class Position:
    """How far events of one type have been read.

    Attributes:
        after: number of an event; all up to it are read.
        recent: number → when it was read, of events behind `after` that are read too.
        left: number of the first event that was seen and left for later; 0 if none was.
    """

    after: int = 0
    recent: dict[int, float] = field(default_factory=dict)
    left: int = 0


@dataclass(slots=True)
class Memory:
    """What one tick leaves for the next. Times are seconds since 1970.

    Attributes:
        since: what happened before does not count.
        read: event type → how far it was read.
        busy_since: since when there has been something to do; None while there is nothing.
        last_success: when a run last ended well, as far as was seen.
        ticks: sensor → number of its last tick that was counted; ticks_read: when that was.
    """

    since: float
    read: dict[str, Position] = field(default_factory=dict)
    busy_since: float | None = None
    last_success: float = 0.0
    ticks: dict[str, int] = field(default_factory=dict)
    ticks_read: float = 0.0

    @classmethod
    def of_cursor(cls, cursor: str | None, now: float) -> Memory:
        """What the last tick left, maybe of a later version, rolled back since; without it, now begins."""
        if cursor is None:
            return cls(since=now)
        kept: dict[str, Any] = json.loads(cursor)
        fields = {name: value for name, value in kept.items() if name in cls.__dataclass_fields__}
        read = {
            kind: Position(
                position["after"],
                {int(number): at for number, at in position["recent"].items()},
                position.get("left", 0),
            )
            for kind, position in fields.pop("read").items()
        }
        return cls(**fields, read=read)

    def to_cursor(self) -> str:
        return json.dumps(asdict(self))


@dg.sensor(
    name=SENSOR_NAME,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"services"},
    description="Counts runs that started, succeeded and failed, and measures what waits, hangs or is given "
    "up: the metrics that no worker can publish of itself.",
)
def vital_signs_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """See the module."""
    services = cast(Needs, context.resources.services)
    now = time.time()
    memory = Memory.of_cursor(context.cursor, now)
    queues = None if services.settings.queue_url is None else queues_at(services.settings.queue_url)
    unseen = observe(context.instance, services, memory, queues, now=now)
    told = f"Could not be looked at: {', '.join(unseen)}." if unseen else "All vital signs are published."
    return dg.SensorResult(skip_reason=dg.SkipReason(told), cursor=memory.to_cursor())


def observe(
    instance: dg.DagsterInstance, needs: Needs, memory: Memory, queues: Queues | None, *, now: float
) -> list[str]:
    """Publish everything once; returns the names of what could not be looked at."""
    metrics, settings = needs.metrics, needs.settings
    waiting: int | None = None  # unknown

    def look_at_queues() -> None:
        nonlocal waiting
        if queues is None:
            waiting = 0
        else:
            waiting = queues.waiting()
            metrics.add(DEAD_LETTERS, queues.dead_letters())

    looks: dict[str, Callable[[], None]] = {
        "runs": lambda: _count_runs(instance, metrics, memory, now),
        "running runs": lambda: metrics.add(
            LONGEST_RUN_OVER_LIMIT, longest_over_limit(instance, settings, now)
        ),
        "queues": look_at_queues,
        # Behind the queues, whose messages are something to do.
        "work": lambda: _measure_idleness(instance, metrics, memory, waiting, now),
        "intake": lambda: _tell_pause(instance, metrics),
        "sensor ticks": lambda: _measure_ticks(instance, metrics, memory, now),
    }
    unseen = []
    for name, look in looks.items():
        try:
            look()
        except Exception as error:  # one that cannot be looked at must not hide the others
            unseen.append(name)
            log.warning(
                f"{name.capitalize()} cannot be looked at: {type(error).__name__}: {error}",
                extra={"action": "look.failed", "source": name},
            )
    return unseen


def longest_over_limit(instance: dg.DagsterInstance, settings: Settings, now: float) -> float:
    """Of the running runs, the greatest ratio of age to limit; 0 while none runs."""
    running = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    return max((age_over_limit(record, settings, now) for record in running), default=0.0)


def age_over_limit(record: dg.RunRecord, settings: Settings, now: float) -> float:
    """The ratio of a running run's age to the limit of its own video; above 1 it is overdue."""
    if record.start_time is None:
        return 0.0
    try:
        video_s = float(record.dagster_run.tags.get(VIDEO_SECONDS_TAG, 0))
    except ValueError:
        video_s = 0.0
    limit_s = max(60 * settings.run_limit_minutes, settings.run_limit_per_video * video_s)
    return max(0.0, now - record.start_time) / limit_s


def _count_runs(instance: dg.DagsterInstance, metrics: Metrics, memory: Memory, now: float) -> None:
    """Zeros too: the rate of failures needs them."""
    over = time.monotonic() + _BUDGET_S
    # If anything goes wrong on the way, nothing is counted and nothing is read.
    read = copy.deepcopy(memory.read)

    def unread(
        kind: RunStatusChangeEventType, is_ready: IsReady | None = None
    ) -> Iterator[dg.EventLogRecord]:
        position = read.setdefault(kind.value, Position())
        return _unread(instance, kind, position, memory.since, now, is_ready)

    started = list(unread(dg.DagsterEventType.RUN_START))
    succeeded = list(unread(dg.DagsterEventType.RUN_SUCCESS))
    runs = _records(instance, [event.event_log_entry.run_id for event in succeeded])
    failures: Counter[str] = Counter()
    for event in unread(dg.DagsterEventType.RUN_FAILURE, _is_settled):
        run_id = event.event_log_entry.run_id
        # An operator may have deleted it, or started it again and canceled it.
        record = _records(instance, [run_id]).get(run_id)
        run = None if record is None else record.dagster_run
        if run is not None and run.status == dg.DagsterRunStatus.FAILURE and not starts_again(run):
            failure, _ = failure_of(instance, run)
            failures[failure.value] += 1
            runs[run_id] = cast(dg.RunRecord, record)
        if time.monotonic() > over:
            break
    memory.read = read
    memory.last_success = max(
        [memory.last_success, *(event.event_log_entry.timestamp for event in succeeded)]
    )
    metrics.add_all({RUNS_STARTED: len(started), RUNS_SUCCEEDED: len(succeeded)})
    metrics.add(RUNS_FAILED, 0)
    for failure_class, count in failures.items():
        metrics.add(RUNS_FAILED, count, failure_class=failure_class)
    for record in runs.values():
        if record.start_time is not None and record.end_time is not None:
            metrics.add(RUN_DURATION, max(0.0, record.end_time - record.start_time))


def _measure_idleness(
    instance: dg.DagsterInstance, metrics: Metrics, memory: Memory, waiting: int | None, now: float
) -> None:
    """How long nothing has succeeded although there was something to do all the time.

    Args:
        waiting: messages in the queue; None if that is not known: then what was so last is still so.
    """
    queued = instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
    if waiting or queued or instance.get_runs_count(dg.RunsFilter(statuses=_IN_PROGRESS)):
        memory.busy_since = memory.busy_since or now
    elif waiting is not None:
        memory.busy_since = None
    since = None if memory.busy_since is None else max(memory.busy_since, memory.last_success)
    metrics.add_all(
        {RUNS_QUEUED: queued, SECONDS_WITHOUT_SUCCESS: 0.0 if since is None else max(0.0, now - since)}
    )


def _tell_pause(instance: dg.DagsterInstance, metrics: Metrics) -> None:
    breaker = read_breaker(instance)
    if breaker.paused and breaker.cause is not None:
        metrics.add(INTAKE_PAUSED, 1, failure_class=breaker.cause)
    else:
        metrics.add(INTAKE_PAUSED, 0)


def _measure_ticks(instance: dg.DagsterInstance, metrics: Metrics, memory: Memory, now: float) -> None:
    """Of each sensor the ticks that have ended since the last look."""
    after = max(memory.since, memory.ticks_read - _LONGEST_TICK_S)
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        if state.status == InstigatorStatus.STOPPED:
            continue
        name = state.instigator_name
        ticks = instance.get_ticks(
            state.instigator_origin_id, state.selector_id, after=after, limit=_TICKS_AT_ONCE
        )
        # A sensor's ticks come one after the other, so one that has not ended is its last.
        ended = [tick for tick in ticks if tick.status != TickStatus.STARTED]
        for tick in ended:
            if tick.tick_id > memory.ticks.get(name, 0):
                took = max(0.0, (tick.end_timestamp or tick.timestamp) - tick.timestamp)
                failed = tick.status == TickStatus.FAILURE
                metrics.add_all({SENSOR_TICK_DURATION: took, SENSOR_TICK_ERRORS: failed}, sensor=name)
        memory.ticks[name] = max([memory.ticks.get(name, 0), *(tick.tick_id for tick in ended)])
    memory.ticks_read = now


def _unread(
    instance: dg.DagsterInstance,
    kind: RunStatusChangeEventType,
    position: Position,
    since: float,
    now: float,
    is_ready: IsReady | None,
) -> Iterator[dg.EventLogRecord]:
    """Events that were not read yet, each read when it is given out.

    Args:
        is_ready: whether there is all to know of an event's run already; else it is left for later.
    """
    # However long nobody looked, what was left for later stays before what is remembered.
    old = [
        number
        for number, at in position.recent.items()
        if now - at > _OVERLAP_S and not 0 < position.left < number
    ]
    position.after = max([position.after, *old])
    position.recent = {number: at for number, at in position.recent.items() if number > position.after}
    cursor = position.after
    left: list[int] = []
    while True:
        wanted = dg.RunStatusChangeRecordsFilter(kind, after_timestamp=since, after_storage_id=cursor or None)
        events = instance.fetch_run_status_changes(wanted, limit=_EVENTS_AT_ONCE, ascending=True).records
        fresh = [event for event in events if event.storage_id not in position.recent]
        if is_ready is not None:
            runs = _records(instance, [event.event_log_entry.run_id for event in fresh])
            ready = [_may_be_read(event, runs, now, is_ready) for event in fresh]
            left += [event.storage_id for event, is_it in zip(fresh, ready, strict=True) if not is_it]
            fresh = [event for event, is_it in zip(fresh, ready, strict=True) if is_it]
            # Whoever takes them may stop before the end.
            position.left = min(filter(None, [position.left, *left]), default=0)
        for event in fresh:
            position.recent[event.storage_id] = now
            yield event
        if len(events) < _EVENTS_AT_ONCE:
            position.left = min(left, default=0)
            return
        cursor = events[-1].storage_id


def _is_settled(run: dg.DagsterRun, age_s: float) -> bool:
    return retry_is_decided(run, age_s) and is_explained(run, age_s)


def _may_be_read(
    event: dg.EventLogRecord, runs: dict[str, dg.RunRecord], now: float, is_ready: IsReady
) -> bool:
    record = runs.get(event.event_log_entry.run_id)
    return record is None or is_ready(record.dagster_run, now - event.event_log_entry.timestamp)


def _records(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> dict[str, dg.RunRecord]:
    if not run_ids:
        return {}
    records = instance.get_run_records(dg.RunsFilter(run_ids=list(dict.fromkeys(run_ids))))
    return {record.dagster_run.run_id: record for record in records}
