"""How many events each camera had in each hour, from the current events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from capstone_dagster.storage.schema import SCHEMA

# Counted from the last event that has a wall-clock time, because footage may be older than its upload. What
# a camera dates into the future is left out: it would move the window away from everything else.
_ACTIVITY = sa.text(f"""
    WITH last AS (
        SELECT max(started_at) AS at FROM {SCHEMA}.current_events WHERE started_at <= now()
    )
    SELECT
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
_WITHOUT_TIME = sa.text(f"SELECT count(*) FROM {SCHEMA}.current_events WHERE started_at IS NULL")


def activity(connection: sa.Connection, *, zone: str, days: int) -> tuple[list[Mapping[str, Any]], int]:
    """Rows of camera, hour, events, persons, faces, in order of time; and how many events have no time.

    Args:
        zone: in which hours are counted and told; the two that a clock change makes of one are two.
        days: so many before the last event.
    """
    rows = connection.execute(_ACTIVITY, {"zone": zone, "days": days}).mappings()
    told: list[Mapping[str, Any]] = [{**row, "hour": row["hour"].astimezone(ZoneInfo(zone))} for row in rows]
    return told, connection.execute(_WITHOUT_TIME).scalar_one()
