"""The table `watches`: what people want to hear of. Each function needs a transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage import outbox
from capstone_dagster.storage.schema import SCHEMA, watches

Row = Mapping[str, Any]
KIND = "video.watched"
# Longer lists tell nobody more, and SNS takes 256 KiB.
_LISTED_AT_MOST = 20

# Hours are those of a clock on the wall of the watch's zone; from 22:00 to 06:00 goes over midnight.
_MATCHES = sa.text(f"""
    SELECT w.name AS watch, e.event_id, e.label, e.start_ms, e.started_at, e.thumbnail_key,
        w.zone, count(*) OVER (PARTITION BY w.name) AS events
    FROM {SCHEMA}.watches AS w JOIN {SCHEMA}.events AS e ON e.analysis_id = :analysis_id
    CROSS JOIN LATERAL (SELECT (e.started_at AT TIME ZONE w.timezone)::time AS time) AS clock
    WHERE (w.camera IS NULL OR w.camera = e.camera)
      AND (w.label IS NULL OR w.label = e.label)
      AND (
        w.zone IS NULL
        OR e.zones @> jsonb_build_array(jsonb_build_object('zone', w.zone))
        OR e.crossings @> jsonb_build_array(jsonb_build_object('line', w.zone))
      )
      AND (
        w.from_time IS NULL
        OR CASE
            WHEN w.from_time < w.to_time THEN clock.time >= w.from_time AND clock.time < w.to_time
            ELSE clock.time >= w.from_time OR clock.time < w.to_time
        END
      )
    ORDER BY w.name, e.start_ms, e.event_id
""")


def all_watches(connection: sa.Connection) -> list[Row]:
    """Every watch, in order of name."""
    return [dict(row) for row in connection.execute(sa.select(watches).order_by(watches.c.name)).mappings()]


def set_watch(connection: sa.Connection, row: Row) -> None:
    """Add a watch, or replace the one of its name."""
    added = insert(watches).values(row)
    connection.execute(added.on_conflict_do_update(index_elements=["name"], set_=dict(row)))


def remove_watch(connection: sa.Connection, name: str) -> bool:
    """Remove a watch; whether there was one."""
    return connection.execute(sa.delete(watches).where(watches.c.name == name)).rowcount > 0


def notify_watched(connection: sa.Connection, analysis_id: str, upload_id: str, video_id: str) -> None:
    """Queue a notice for each watch that events of an analysis match: one for all of them."""
    found: dict[str, list[Row]] = {}
    for row in connection.execute(_MATCHES, {"analysis_id": analysis_id}).mappings():
        found.setdefault(row["watch"], []).append(dict(row))
    for name, rows in found.items():
        names = ("event_id", "label", "start_ms", "started_at", "zone", "thumbnail_key")
        payload = {
            "watch": name,
            "analysis_id": analysis_id,
            "events": rows[0]["events"],
            "matches": [{each: row[each] for each in names} for row in rows[:_LISTED_AT_MOST]],
        }
        outbox.notify(connection, KIND, upload_id, video_id, payload)
