"""From the spool's records to PutLogEvents' batches and streams, within that call's limits; pure."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from capstone_dagster.logs.spool import Record

# A batch's bytes, of which each event counts 26 more than its text, and its events.
MOST_BATCH_BYTES = 1_048_576
EVENT_BYTES = 26
MOST_EVENTS = 10_000
_TIMESTAMP = re.compile(r'"timestamp": ?"([^"]{19,35})"')


def first_batch(lines: Sequence[Record]) -> int:
    """How many of the lines, from the first on, one PutLogEvents takes: of one stream, so of one UTC day."""
    size = 0
    day = _day(event_time(lines[0]))
    for count, line in enumerate(lines[:MOST_EVENTS]):
        size += len(line.text.encode(errors="replace")) + EVENT_BYTES
        if size > MOST_BATCH_BYTES or _day(event_time(line)) != day:
            return max(1, count)
    return min(len(lines), MOST_EVENTS)


def event_time(line: Record) -> int:
    """When that happened which a line tells of, else when it was written; milliseconds since 1970."""
    found = _TIMESTAMP.search(line.text, 0, 400)
    if found:
        with contextlib.suppress(ValueError, OverflowError):
            moment = datetime.fromisoformat(found[1])
            time_ms = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
            return time_ms if time_ms >= 0 else line.time_ms  # which the API does not take
    return line.time_ms


def stream_name(host: str, writer: str, time_ms: int) -> str:
    """The log stream of one writer's day."""
    return f"{_day(time_ms)}/{host}/{writer}"


def refused_events(refused: Mapping[str, Any], count: int) -> int:
    """How many of a batch's events CloudWatch did not take, by its answer's `rejectedLogEventsInfo`."""
    too_old = max(refused.get("tooOldLogEventEndIndex") or 0, refused.get("expiredLogEventEndIndex") or 0)
    too_new = refused.get("tooNewLogEventStartIndex")
    return min(count, too_old + (count - too_new if too_new is not None else 0))


def _day(time_ms: int) -> str:
    return time.strftime("%Y/%m/%d", time.gmtime(time_ms // 1000))
