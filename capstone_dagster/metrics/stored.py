"""What Dagster's storage, the event store and the queues say of the system, for Prometheus and for health.

Aggregates over indexes, at most one round each ten seconds however often it is asked, in a thread beside the
scrape: a database that does not answer costs a scrape half a second and its figures, nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from capstone_dagster.dagster_private import (
    BulkActionsTable,
    DaemonHeartbeatsTable,
    InstigatorsTable,
    JobTickTable,
    RunsTable,
    RunTagsTable,
    TickStatus,
)
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.metrics.waiting_messages import Queues
from capstone_dagster.run_tags import FAILURE_TAG
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.outbox import outbox_backlog
from capstone_dagster.storage.schema import UNFINISHED_STATES, video_status

log = logging.getLogger("capstone.metrics")

DAGSTER_STORAGE, EVENT_STORE, QUEUES = "dagster-storage", "event-store", "queues"
_FRESH_S = 10.0
_PATIENCE_S = 0.5
_STATEMENT_S = 5
# Each of the daemon's loops writes a heartbeat every 30 s.
_SILENT_S = 300.0
_TICKS_LOOKED_BACK = timedelta(minutes=10)

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A gauge: its values by those of its labels."""

    name: str
    meaning: str
    values: Mapping[Labels, float]
    labels: Labels = ()

    @property
    def value(self) -> float:
        """Of a figure without labels."""
        return self.values[()]


Look = Callable[[], Iterable[Figure]]


class StoredFigures(Collector):
    """The latest figures of each source; a source that does not answer has none, and says so.

    Args:
        looks: source → a function that reads its figures, and raises when it cannot.
        clock: seconds that never go back.
    """

    def __init__(self, looks: Mapping[str, Look], clock: Callable[[], float] = time.monotonic) -> None:
        self._looks = looks
        self._clock = clock
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max(1, len(looks)), "figures")
        self._busy: set[str] = set()
        self._looked_at: dict[str, float] = {}
        self._found: dict[str, list[Figure] | None] = {}

    def read(self) -> Mapping[str, list[Figure] | None]:
        """Source → its figures, or None where it does not answer; waits half a second at most."""
        with self._lock:
            now = self._clock()
            due = [
                source
                for source in self._looks
                if source not in self._busy and now - self._looked_at.get(source, -_FRESH_S) >= _FRESH_S
            ]
            self._busy.update(due)
        wait_for([self._pool.submit(self._look, source) for source in due], timeout=_PATIENCE_S)
        with self._lock:
            return {source: self._found.get(source) for source in self._looks}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self.read()
        up = GaugeMetricFamily(
            "capstone_source_up", "1 while this source of figures answers.", labels=["source"]
        )
        for source, figures in found.items():
            up.add_metric([source], figures is not None)
        yield up
        for figure in (each for figures in found.values() for each in figures or ()):
            family = GaugeMetricFamily(figure.name, figure.meaning, labels=figure.labels)
            for labels, value in figure.values.items():
                family.add_metric(labels, value)
            yield family

    def _look(self, source: str) -> None:
        figures: list[Figure] | None = None
        try:
            figures = list(self._looks[source]())
        except Exception as error:  # one source that is away must not hide the others
            if self._found.get(source, []) is not None:
                text = f"There are no figures of the {source}: {type(error).__name__}: {error}"
                log.warning(text, extra={"action": "look.failed", "source": source})
        with self._lock:
            self._busy.discard(source)
            self._looked_at[source] = self._clock()
            self._found[source] = figures


def healthy(found: Mapping[str, list[Figure] | None]) -> dict[str, bool]:
    """Whether each source answers and the daemon gives signs of life."""
    beats = [each for each in found.get(DAGSTER_STORAGE) or () if each.name == SILENCE]
    daemon = bool(beats) and beats[0].value < _SILENT_S
    return {**{source: figures is not None for source, figures in found.items()}, "daemon": daemon}


def of_dagster(instance: dg.DagsterInstance) -> Iterable[Figure]:
    """Runs, backfills, ticks and the daemon, from Dagster's storage."""
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        yield from dagster_figures(connection, instance.get_required_daemon_types(), now=time.time())
    with instance.schedule_storage.connect() as connection:  # type: ignore[union-attr]
        yield tick_figure(connection, datetime.now(UTC))


SILENCE = "capstone_daemon_silence_seconds"


def dagster_figures(connection: sa.Connection, daemons: Iterable[str], *, now: float) -> Iterator[Figure]:
    """Figures over one connection to Dagster's storage.

    Args:
        daemons: the daemon's loops, of which each must give signs of life.
        now: seconds since 1970.
    """
    runs, tags, backfills, beats = RunsTable.c, RunTagsTable.c, BulkActionsTable.c, DaemonHeartbeatsTable.c

    def counted(column: sa.ColumnElement[str], *conditions: sa.ColumnElement[bool]) -> dict[Labels, float]:
        statement = sa.select(column, sa.func.count()).where(*conditions).group_by(column)
        return {(str(value).lower(),): count for value, count in connection.execute(statement)}

    none_yet: dict[Labels, float] = {(status.value.lower(),): 0 for status in dg.DagsterRunStatus}
    yield Figure("capstone_runs", "Runs in Dagster's storage.", none_yet | counted(runs.status), ("status",))
    classes: dict[Labels, float] = {(each.value,): 0 for each in FailureClass}
    found = counted(tags.value, tags.key == FAILURE_TAG)
    yield Figure(
        "capstone_runs_by_failure",
        "Runs in Dagster's storage of which the failure has this class.",
        classes | {labels: count for labels, count in found.items() if labels in classes},
        ("failure_class",),
    )
    yield Figure(
        "capstone_backfills", "Backfills in Dagster's storage.", counted(backfills.status), ("status",)
    )
    queued = sa.select(sa.func.min(runs.create_timestamp)).where(
        runs.status == dg.DagsterRunStatus.QUEUED.value
    )
    oldest = connection.execute(queued).scalar()
    yield Figure(
        "capstone_oldest_queued_run_seconds",
        "How long the oldest queued run waits; 0 if none does.",
        {(): 0.0 if oldest is None else _age(_epoch(oldest), now)},
    )
    ended_well = sa.select(sa.func.max(runs.update_timestamp)).where(
        runs.status == dg.DagsterRunStatus.SUCCESS.value
    )
    last = connection.execute(ended_well).scalar()
    if last is not None:
        yield Figure(
            "capstone_last_success_seconds",
            "Time since a run last ended well.",
            {(): _age(_epoch(last), now)},
        )
    seen = dict(connection.execute(sa.select(beats.daemon_type, beats.timestamp)).tuples().all())
    ages = [_age(_epoch(seen[name]), now) for name in daemons if name in seen]
    if ages:
        yield Figure(
            SILENCE, "Time since the most silent of the daemon's loops gave a sign of life.", {(): max(ages)}
        )


def tick_figure(connection: sa.Connection, now: datetime) -> Figure:
    """Ticks over one connection to Dagster's storage of schedules, whose index is by instigator."""
    ticks = JobTickTable.c
    since = (now - _TICKS_LOOKED_BACK).replace(tzinfo=None)
    statement = (
        sa.select(ticks.status, sa.func.count())
        .where(ticks.selector_id.in_(sa.select(InstigatorsTable.c.selector_id)), ticks.timestamp >= since)
        .group_by(ticks.status)
    )
    none_yet: dict[Labels, float] = {(status.value.lower(),): 0 for status in TickStatus}
    return Figure(
        "capstone_recent_ticks",
        "Ticks of sensors and schedules in the last ten minutes.",
        none_yet | {(status.lower(),): count for status, count in connection.execute(statement)},
        ("status",),
    )


def of_events(database: Database) -> Iterable[Figure]:
    """Uploads under way and notices that wait, from the event store."""
    with database.transaction(limit_s=_STATEMENT_S) as connection:
        yield from event_figures(connection, now=time.time())


def event_figures(connection: sa.Connection, *, now: float) -> Iterator[Figure]:
    """Figures over one transaction of the event store.

    Args:
        now: seconds since 1970.
    """
    status = video_status.c
    # As literals, because PostgreSQL uses a partial index only where it can prove its condition.
    unfinished = status.state.in_([sa.literal_column(f"'{state}'") for state in UNFINISHED_STATES])
    failed = status.state == sa.literal_column("'failed'")
    rows = connection.execute(
        sa.select(status.state, sa.func.count(), sa.func.min(status.uploaded_at))
        .where(unfinished)
        .group_by(status.state)
    ).all()
    states: dict[Labels, float] = {(state,): 0 for state in UNFINISHED_STATES}
    states |= {(state,): count for state, count, _ in rows}
    states["failed",] = connection.execute(sa.select(sa.func.count()).where(failed)).scalar_one()
    yield Figure(
        "capstone_uploads", "Uploads that are under way, and those that have failed.", states, ("state",)
    )
    ages = [_age(oldest.timestamp(), now) for _, _, oldest in rows]
    yield Figure(
        "capstone_oldest_unfinished_upload_seconds",
        "Age of the oldest upload that is under way; 0 if none is.",
        {(): max(ages, default=0.0)},
    )
    waiting = outbox_backlog(connection)
    yield Figure("capstone_outbox_waiting", "Notices that wait in the outbox.", {(): waiting.waiting})


def of_queues(queues: Queues) -> Iterable[Figure]:
    """Messages in the upload queue and among the dead letters."""
    return [
        Figure(
            "capstone_queue_messages",
            "Messages in the queue, those included that were received and not acknowledged yet.",
            {("uploads",): queues.waiting(), ("dead-letters",): queues.dead_letters()},
            ("queue",),
        )
    ]


def _epoch(at: datetime) -> float:
    """Seconds since 1970 of a time as Dagster stores it: in UTC, without its zone."""
    return at.replace(tzinfo=UTC).timestamp()


def _age(at: float, now: float) -> float:
    """Time since then; 0 where the clock has gone back since."""
    return max(0.0, now - at)
