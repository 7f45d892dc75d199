"""What the pages show, read from the views that every consumer reads. Each function needs a transaction.

Galleries are paged by keyset: a page begins after the last event of the one before, whatever is published
meanwhile. Events whose wall-clock time is unknown follow all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from capstone_dagster.storage.schema import SCHEMA

PAGE_SIZE = 48
# A filter that nothing matches must not read a whole store in one request: a page looks at this many events,
# and the next one goes on from there.
LOOKED_AT = 10_000
_NEIGHBOURS = 3
# A lane for each track: more than this nobody tells apart.
_LANES_AT_MOST = 5000
_UPLOADS_AT_MOST = 100
_FAILURES_AT_MOST = 20

Row = Mapping[str, Any]

# DISTINCT would read every event; this reads one for each camera.
_CAMERAS = sa.text(f"""
    WITH RECURSIVE found AS (
        (SELECT camera FROM {SCHEMA}.current_events ORDER BY camera LIMIT 1)
        UNION ALL
        SELECT (
            SELECT e.camera FROM {SCHEMA}.current_events AS e
            WHERE e.camera > found.camera ORDER BY e.camera LIMIT 1
        )
        FROM found WHERE found.camera IS NOT NULL
    )
    SELECT camera FROM found WHERE camera IS NOT NULL
""")
_UNFINISHED = "('queued', 'waiting-for-compute', 'running')"
# Those of the first kind bound the index that a page is read from; the others are checked row by row.
_BOUNDS = {
    "camera": "camera = :camera",
    "since": "started_at >= :since",
    "until": "started_at < :until",
}
_CHECKS = {
    "label": "label = :label",
    "faces": "(face_score IS NOT NULL OR label = 'face')",
    "score": "best_score >= :score",
    "zone": "(zones @> jsonb_build_array(jsonb_build_object('zone', CAST(:zone AS text))) OR "
    "crossings @> jsonb_build_array(jsonb_build_object('line', CAST(:zone AS text))))",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which events a gallery shows; None and False mean all.

    Attributes:
        since, until: those that began at or after, and before; then only events with a wall-clock time.
        faces: only those with a face.
        score: the lowest best score.
        zone: the name of a zone they were in, or of a line they crossed.
    """

    camera: str | None = None
    label: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    faces: bool = False
    score: float | None = None
    zone: str | None = None

    @property
    def dated(self) -> bool:
        """Whether only events with a wall-clock time are meant."""
        return self.since is not None or self.until is not None

    def bounds(self) -> dict[str, str]:
        """SQL conditions of the time and the camera, by the names of their parameters."""
        return self._given(_BOUNDS)

    def checks(self) -> dict[str, str]:
        """The other SQL conditions, by the names of their parameters."""
        return self._given(_CHECKS)

    def parameters(self) -> dict[str, Any]:
        """The parameters of both."""
        return {name: getattr(self, name) for name in (*self.bounds(), *self.checks())}

    def _given(self, conditions: Mapping[str, str]) -> dict[str, str]:
        return {name: sql for name, sql in conditions.items() if getattr(self, name) not in (None, False)}


@dataclass(frozen=True, slots=True)
class Place:
    """An event's place in the order of a gallery.

    >>> Place.of("2026-01-22T05:23:15+00:00~e1").started_at.hour
    5

    Raises:
        ValueError: `of` was given a text that no `str` of a place gave.
    """

    event_id: str
    started_at: datetime | None = None
    video_id: str = ""
    start_ms: int = 0

    @classmethod
    def of(cls, text: str) -> Place:
        match text.split("~"):
            case [time, event_id]:
                return cls(event_id, datetime.fromisoformat(time))
            case ["", video_id, start_ms, event_id]:
                return cls(event_id, None, video_id, int(start_ms))
        raise ValueError(f"{text!r} is no place in a gallery.")

    @classmethod
    def after(cls, row: Row) -> Place:
        return cls(row["event_id"], row["started_at"], row["video_id"], row["start_ms"])

    def __str__(self) -> str:
        if self.started_at is None:
            return f"~{self.video_id}~{self.start_ms}~{self.event_id}"
        return f"{self.started_at.isoformat()}~{self.event_id}"


def gallery(
    connection: sa.Connection,
    choice: Choice,
    after: Place | None = None,
    size: int = PAGE_SIZE,
    looked_at: int = LOOKED_AT,
) -> tuple[list[Row], Place | None]:
    """A page of events, newest first, and the place where the next one begins; None after the last.

    A page may have fewer events than `size`, or none, and be followed by another: it ends where `looked_at`
    events were looked at.
    """
    rows: list[Row] = []
    orders = [_UNDATED] if after is not None and after.started_at is None else [_DATED, _UNDATED]
    for order in orders[:1] if choice.dated else orders:
        of_order = after if order is orders[0] else None
        rows += _page(connection, choice, order, of_order, size + 1 - len(rows), looked_at)
        if len(rows) > size:
            return rows[:size], Place.after(rows[size - 1])
        last = _last_looked_at(connection, choice, order, of_order, looked_at) if choice.checks() else None
        if last is not None:
            return rows, last
    return rows, None


@dataclass(frozen=True, slots=True)
class _Order:
    """An order of events, which an index has, and which events it holds."""

    which: str
    columns: tuple[str, ...]

    def query(self, choice: Choice, after: Place | None) -> tuple[str, dict[str, Any]]:
        """The events within the bounds that follow a place, in order, and the parameters."""
        conditions, parameters = [self.which, *choice.bounds().values()], choice.parameters()
        columns = ", ".join(self.columns)
        if after is not None:
            conditions.append(f"({columns}) < ({', '.join(f':{name}' for name in self.columns)})")
            parameters |= {name: getattr(after, name) for name in self.columns}
        query = f"SELECT * FROM {SCHEMA}.current_events WHERE {' AND '.join(conditions)} ORDER BY {self}"
        return query, parameters

    def __str__(self) -> str:
        return ", ".join(f"{column} DESC" for column in self.columns)


_DATED = _Order("started_at IS NOT NULL", ("started_at", "event_id"))
_UNDATED = _Order("started_at IS NULL", ("video_id", "start_ms", "event_id"))


def _page(
    connection: sa.Connection, choice: Choice, order: _Order, after: Place | None, size: int, looked_at: int
) -> list[Row]:
    query, parameters = order.query(choice, after)
    if checks := choice.checks():
        checked = " AND ".join(checks.values())
        query = f"SELECT * FROM ({query} LIMIT :looked_at) AS e WHERE {checked} ORDER BY {order}"
        parameters["looked_at"] = looked_at
    return _rows(connection, f"{query} LIMIT :size", size=size, **parameters)


def _last_looked_at(
    connection: sa.Connection, choice: Choice, order: _Order, after: Place | None, looked_at: int
) -> Place | None:
    """Where a page ended that did not find enough; None if it had looked at everything."""
    query, parameters = order.query(replace(choice, label=None, faces=False, score=None, zone=None), after)
    found = _rows(connection, f"{query} OFFSET :skipped LIMIT 1", skipped=looked_at - 1, **parameters)
    return Place.after(found[0]) if found else None


def cameras(connection: sa.Connection) -> list[str]:
    """The cameras that have events, in order of name."""
    return list(connection.execute(_CAMERAS).scalars())


def zones(connection: sa.Connection) -> list[Row]:
    """Rows of `camera_zones`, in order of camera and name."""
    return _rows(connection, f"SELECT * FROM {SCHEMA}.camera_zones ORDER BY camera, name")


def latest_video(connection: sa.Connection, camera: str) -> Row | None:
    """The row of `published_analyses` of the camera's video that was analysed last and is kept."""
    query = f"""
        SELECT * FROM {SCHEMA}.published_analyses
        WHERE camera = :camera AND is_current AND raw_removed_at IS NULL ORDER BY published_at DESC LIMIT 1
    """
    return next(iter(_rows(connection, query, camera=camera)), None)


def hourly_counts(connection: sa.Connection, choice: Choice) -> list[int]:
    """Events in each hour from `choice.since` to `choice.until`, both of which are needed."""
    assert choice.since is not None
    assert choice.until is not None
    conditions = [*choice.bounds().values(), *choice.checks().values()]
    query = (
        "SELECT floor(extract(epoch FROM started_at - :since) / 3600)::int AS hour, count(*) AS events "
        f"FROM {SCHEMA}.current_events WHERE {' AND '.join(conditions)} GROUP BY 1"
    )
    found = {row["hour"]: row["events"] for row in _rows(connection, query, **choice.parameters())}
    return [found.get(hour, 0) for hour in range(round((choice.until - choice.since).total_seconds() / 3600))]


def event(connection: sa.Connection, event_id: str) -> Row | None:
    """A row of `current_events` with those columns of its analysis that `published_analyses` adds."""
    query = f"""
        SELECT a.*, e.* FROM {SCHEMA}.current_events AS e
        JOIN {SCHEMA}.published_analyses AS a ON a.analysis_id = e.analysis_id
        WHERE e.event_id = :event_id
    """
    return next(iter(_rows(connection, query, event_id=event_id)), None)


def neighbours(connection: sa.Connection, row: Row) -> tuple[list[Row], list[Row]]:
    """The events before and after one: of its camera in time, of its video where the time is unknown."""
    if row["started_at"] is None:
        same, order = "video_id = :video_id AND started_at IS NULL", ("start_ms", "event_id")
    else:
        same, order = "camera = :camera", ("started_at", "event_id")
    keyset = f"({', '.join(order)}) {{}} ({', '.join(f':{name}' for name in order)})"
    found = []
    for comparison, direction in (("<", "DESC"), (">", "ASC")):
        by = ", ".join(f"{name} {direction}" for name in order)
        query = (
            f"SELECT * FROM {SCHEMA}.current_events "
            f"WHERE {same} AND {keyset.format(comparison)} ORDER BY {by} LIMIT {_NEIGHBOURS}"
        )
        names = ("camera", "video_id", *order)
        parameters = {name: row[name] for name in names if f":{name}" in query}
        found.append(_rows(connection, query, **parameters))
    before, after = found
    return before[::-1], after


def events_of_video(connection: sa.Connection, video_id: str) -> list[Row]:
    """The current events of a video, in order of time."""
    query = f"""
        SELECT * FROM {SCHEMA}.current_events WHERE video_id = :video_id
        ORDER BY start_ms, event_id LIMIT {_LANES_AT_MOST}
    """
    return _rows(connection, query, video_id=video_id)


def analyses_of_video(connection: sa.Connection, video_id: str) -> list[Row]:
    """Rows of `published_analyses` of a video: the current one first, then the latest."""
    query = f"""
        SELECT * FROM {SCHEMA}.published_analyses WHERE video_id = :video_id
        ORDER BY is_current DESC, published_at DESC
    """
    return _rows(connection, query, video_id=video_id)


def current_analysis(connection: sa.Connection, video_id: str) -> Row | None:
    """The row of `published_analyses` whose events are shown."""
    found = analyses_of_video(connection, video_id)
    return found[0] if found and found[0]["is_current"] else None


def status_of_video(connection: sa.Connection, video_id: str) -> Row | None:
    """The row of `current_status` of a video."""
    query = f"SELECT * FROM {SCHEMA}.current_status WHERE video_id = :video_id"
    return next(iter(_rows(connection, query, video_id=video_id)), None)


def uploads_on_their_way(connection: sa.Connection) -> tuple[list[Row], int]:
    """Uploads with a run that is not over, in order of arrival, and how many there are.

    `place` is an upload's place among those that wait; prioritised runs go before it.
    """
    query = f"""
        SELECT *, count(*) FILTER (WHERE state <> 'running') OVER (ORDER BY recorded_order) AS place
        FROM {SCHEMA}.uploads WHERE state IN {_UNFINISHED} ORDER BY recorded_order LIMIT {_UPLOADS_AT_MOST}
    """
    total = f"SELECT count(*) FROM {SCHEMA}.uploads WHERE state IN {_UNFINISHED}"
    return _rows(connection, query), connection.execute(sa.text(total)).scalar_one()


def failed_uploads(connection: sa.Connection) -> list[Row]:
    """Uploads that failed and were not replaced since, latest first."""
    query = f"""
        SELECT * FROM {SCHEMA}.uploads AS u
        WHERE state = 'failed' AND upload_id = (
            SELECT c.upload_id FROM {SCHEMA}.current_status AS c WHERE c.video_id = u.video_id
        )
        ORDER BY updated_at DESC LIMIT {_FAILURES_AT_MOST}
    """
    return _rows(connection, query)


def _rows(connection: sa.Connection, query: str, **parameters: Any) -> list[Row]:
    return [dict(row) for row in connection.execute(sa.text(query), parameters).mappings()]
