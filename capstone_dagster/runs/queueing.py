"""Which places waiting runs have in Dagster's queue, and what they wait for.

Pure; `commands/dagster_tables.py` reads the queue.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capstone_dagster.failures.breaker_state import BreakerState

WAITING_STATES = ("received", "queued", "waiting-for-compute")
_SILENT_S = 120.0


@dataclass(frozen=True, slots=True)
class QueuedRun:
    """A run that waits.

    Attributes:
        priority: its tag as it is, a number or not.
        upload_id: what it is for; None if it was started in Dagster's pages.
    """

    run_id: str
    priority: str
    upload_id: str | None


@dataclass(frozen=True, slots=True)
class Queue:
    """Dagster's queue at a moment.

    Attributes:
        waiting: in the order of their creation.
        running: how many runs are started and not over.
        daemon_seen_at: the last heartbeat of the daemon that starts runs, seconds since 1970; None: there
            was none.
        intake: whether new uploads are taken from the queue of messages.
    """

    waiting: tuple[QueuedRun, ...]
    running: int
    daemon_seen_at: float | None
    intake: BreakerState


@dataclass(frozen=True, slots=True)
class Place:
    """Where a queued run stands; the first one is 1.

    Attributes:
        of: how many runs wait.
        running: how many runs are started and not over.
        upload_id: what the run is for; None if it was started in Dagster's pages.
    """

    position: int
    of: int
    running: int
    upload_id: str | None = None

    def __str__(self) -> str:
        text = f"{ordinal(self.position)} of {self.of} in the queue"
        return text + (f", {self.running} running" if self.running else "")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What an upload waits for.

    Attributes:
        place: in Dagster's queue; None if its run is not (or no longer) there.
        reason: in words.
    """

    place: Place | None
    reason: str


def places(waiting: Sequence[QueuedRun], running: int) -> dict[str, Place]:
    """Run id → place, in the order in which Dagster's queue takes them: higher priority, then older ones."""
    ordered = sorted(waiting, key=_priority, reverse=True)
    return {
        run.run_id: Place(position, len(ordered), running, run.upload_id)
        for position, run in enumerate(ordered, start=1)
    }


def waits(queue: Queue, rows: Sequence[Mapping[str, Any]]) -> dict[str, Waiting]:
    """Upload id → what it waits for, of those uploads that wait.

    Args:
        rows: of `current_status`.
    """
    found = places(queue.waiting, queue.running)
    by_upload = {place.upload_id: place for place in found.values()}
    stopped = held_up(queue)
    waiting = {}
    for row in rows:
        if row["state"] not in WAITING_STATES:
            continue
        place = found.get(row["run_id"]) or by_upload.get(row["upload_id"])
        if row["state"] == "waiting-for-compute":
            reason = row["message"] or "a machine"
        elif place is not None:
            reason = stopped or str(place)
            reason += f". {row['message']}" if row["message"] else ""
        elif row["state"] == "received":
            reason = row["message"] or stopped or intake_pause(queue) or "its run is being asked for"
        else:
            reason = "its worker starts"
        waiting[row["upload_id"]] = Waiting(place, reason)
    return waiting


def held_up(queue: Queue) -> str | None:
    """Why no queued run starts; None if no reason is known."""
    if queue.daemon_seen_at is None:
        return "Dagster's daemon has not run yet"
    silent_s = time.time() - queue.daemon_seen_at
    return f"Dagster's daemon has been silent for {silent_s:,.0f} s" if silent_s > _SILENT_S else None


def intake_pause(queue: Queue) -> str | None:
    """Why new uploads are not taken from the queue of messages; None if they are."""
    state = queue.intake
    return f"intake is paused for {state.cause}: {state.reason}" if state.paused else None


def _priority(run: QueuedRun) -> int:
    """What Dagster's queue makes of the tag; 0 if it is no number."""
    try:
        return int(run.priority)
    except ValueError:
        return 0


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
