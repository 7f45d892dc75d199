"""Events out of the database in any number: read a few thousand at a time, as of one moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from capstone_dagster.storage.schema import SCHEMA

_ROWS_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which of the current events; None means all.

    Attributes:
        video: a video's id or external id.
        since, until: those that began at or after, and before; with either of them only events whose
            wall-clock time is known.
    """

    video: str | None = None
    camera: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def stream_events(
    connection: sa.Connection, which: EventFilter
) -> tuple[list[str], Iterator[Sequence[tuple[Any, ...]]]]:
    """The columns of `current_events`, and its rows in portions: by camera, time, video and place in it.

    The rows are there as long as the connection's transaction is.
    """
    conditions = {
        "video": "(video_id = :video OR external_id = :video)",
        "camera": "camera = :camera",
        "since": "started_at >= :since",
        "until": "started_at < :until",
    }
    parameters = {name: getattr(which, name) for name in conditions if getattr(which, name) is not None}
    where = " AND ".join(conditions[name] for name in parameters)
    query = f"SELECT * FROM {SCHEMA}.current_events" + (f" WHERE {where}" if where else "")
    query += " ORDER BY camera, started_at, video_id, start_ms, track_id, event_id"
    result = connection.execution_options(stream_results=True).execute(sa.text(query), parameters)
    # Said here: of a text, SQLAlchemy minds no `yield_per`, and hands over all rows in one portion.
    portions = result.partitions(_ROWS_AT_ONCE)
    return list(result.keys()), ([tuple(row) for row in rows] for rows in portions)
