"""The table `events` and its view `current_events`, read. Each function needs a transaction.

:mod:`capstone_dagster.storage.analyses` writes events, with the analysis they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from capstone_dagster.storage.schema import SCHEMA, events

_ROWS_AT_ONCE = 2000

# The window ends at the last event that has a wall-clock time, because footage may be older than its upload.
# Events dated into the future are left out, and so are older ones whose date only a tag of the file gives: a
# camera whose clock was never set must not move the window away from everything else.
_LAST = f"""
    WITH last AS (
        SELECT coalesce(max(started_at), now()) AS at
        FROM {SCHEMA}.current_events JOIN {SCHEMA}.videos USING (video_id)
        WHERE started_at <= now()
          AND (recorded_at_source NOT LIKE 'container%' OR started_at > now() - make_interval(days => :days))
    )
"""
_HOURLY = sa.text(f"""
    {_LAST} SELECT
        camera,
        date_trunc('hour', started_at, :zone) AS hour,
        count(*) AS events,
        count(*) FILTER (WHERE label = 'person') AS persons,
        count(*) FILTER (WHERE label = 'face' OR face_score IS NOT NULL) AS faces
    FROM {SCHEMA}.current_events, last
    WHERE started_at > last.at - make_interval(days => :days) AND started_at <= last.at
    GROUP BY 1, 2
    ORDER BY 2, 1
""")
_HOURLY_ZONES = sa.text(f"""
    {_LAST} SELECT
        camera,
        date_trunc('hour', z.at, :zone) AS hour,
        zone,
        count(*) FILTER (WHERE kind = 'polygon') AS visits,
        round(coalesce(sum(dwell_ms), 0) / 1000, 1)::float AS dwell_s,
        count(*) FILTER (WHERE direction = 'in') AS "in",
        count(*) FILTER (WHERE direction = 'out') AS "out"
    FROM {SCHEMA}.zone_events AS z, last
    WHERE z.at > last.at - make_interval(days => :days) AND z.at <= last.at + interval '1 day'
    GROUP BY 1, 2, 3
    ORDER BY 2, 1, 3
""")
_WITHOUT_TIME = sa.text(f"SELECT count(*) FROM {SCHEMA}.current_events WHERE started_at IS NULL")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which of the current events; None means all.

    Attributes:
        videos: ids or external ids; none means all videos.
        labels: none means all labels.
        since, until: those that began at or after, and before; with either of them only events whose
            wall-clock time is known.
    """

    videos: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    camera: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def current_events(connection: sa.Connection, *videos: str) -> list[dict[str, Any]]:
    """Rows of `current_events` in order of time, of all videos or of some (by id or external id)."""
    return find_events(connection, EventFilter(videos=videos))


def find_events(
    connection: sa.Connection, which: EventFilter, *, limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of `current_events` in order of time; first those whose wall-clock time is unknown, by video.

    Args:
        limit: only this many, the latest ones.
    """
    query, parameters = _chosen(which)
    query += (
        " ORDER BY started_at DESC NULLS LAST, video_id DESC, start_ms DESC, track_id DESC, event_id DESC"
    )
    if limit is not None:
        query += " LIMIT :limit"
    found = connection.execute(sa.text(query), {**parameters, "limit": limit}).mappings()
    return [dict(row) for row in found][::-1]


def events_of(connection: sa.Connection, analysis_id: str) -> list[dict[str, Any]]:
    """Rows of `events` of an analysis, current or not, in order of time."""
    statement = (
        sa.select(events)
        .where(events.c.analysis_id == analysis_id)
        .order_by(events.c.start_ms, events.c.track_id)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def stream_events(
    connection: sa.Connection, which: EventFilter
) -> tuple[list[str], Iterator[Sequence[tuple[Any, ...]]]]:
    """The columns of `current_events`, and its rows in portions, as of one moment.

    By camera, time, video and place in it; memory holds one portion at a time. The rows can be read as long
    as the transaction is open.
    """
    query, parameters = _chosen(which)
    query += " ORDER BY camera, started_at, video_id, start_ms, track_id, event_id"
    result = connection.execution_options(stream_results=True).execute(sa.text(query), parameters)
    # The size is given here: for textual SQL, SQLAlchemy ignores `yield_per` and returns all rows at once.
    portions = result.partitions(_ROWS_AT_ONCE)
    return list(result.keys()), ([tuple(row) for row in rows] for rows in portions)


def _chosen(which: EventFilter) -> tuple[str, dict[str, Any]]:
    """A query of `current_events` without an order, and its parameters."""
    conditions = {
        # By the video alone, which has an index: `OR` over two tables would read all events.
        "videos": f"video_id IN (SELECT video_id FROM {SCHEMA}.uploads WHERE video_id = ANY(:videos) "
        f"UNION SELECT video_id FROM {SCHEMA}.uploads WHERE external_id = ANY(:videos))",
        "labels": "label = ANY(:labels)",
        "camera": "camera = :camera",
        "since": "started_at >= :since",
        "until": "started_at < :until",
    }
    given = {name: getattr(which, name) for name in conditions}
    parameters = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value not in (None, ())
    }
    where = " AND ".join(conditions[name] for name in parameters)
    return f"SELECT * FROM {SCHEMA}.current_events" + (f" WHERE {where}" if where else ""), parameters


def hourly_activity(
    connection: sa.Connection, *, zone: str, days: int
) -> tuple[list[Mapping[str, Any]], int]:
    """Events of each camera and hour, and how many events have no wall-clock time.

    Rows of camera, hour (when it began, in the zone), events, persons, faces, in order of time.

    Args:
        zone: time zone of the hours; the two hours that a clock change merges stay two.
        days: length of the window before the last event.
    """
    rows = connection.execute(_HOURLY, {"zone": zone, "days": days}).mappings()
    hours: list[Mapping[str, Any]] = [{**row, "hour": row["hour"].astimezone(ZoneInfo(zone))} for row in rows]
    return hours, connection.execute(_WITHOUT_TIME).scalar_one()


def hourly_zones(connection: sa.Connection, *, zone: str, days: int) -> list[Mapping[str, Any]]:
    """Visits and crossings of each zone and hour, in the window of `hourly_activity`.

    Rows of camera, hour, zone, visits, dwell_s, in, out, in order of time.
    """
    rows = connection.execute(_HOURLY_ZONES, {"zone": zone, "days": days}).mappings()
    return [{**row, "hour": row["hour"].astimezone(ZoneInfo(zone))} for row in rows]
