"""Where runs that wait stand in Dagster's queue, and what they wait for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.storage.tags import PRIORITY_TAG

from capstone_dagster.failures.breaker_state import read_breaker
from capstone_dagster.run_tags import UPLOAD_TAG

WAITING_STATES = ("received", "queued", "waiting-for-compute")
# The daemon that starts queued runs says every 30 s that it lives.
_DEQUEUER = "QUEUED_RUN_COORDINATOR"
_SILENT_S = 120.0


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
        told = f"{ordinal(self.position)} of {self.of} in the queue"
        return told + (f", {self.running} running" if self.running else "")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What an upload waits for.

    Attributes:
        place: in Dagster's queue; None if its run is not (or no longer) there.
        reason: in words.
    """

    place: Place | None
    reason: str


def priority_of(tags: Mapping[str, str]) -> int:
    """What Dagster's queue makes of a run's tag; 0 if it is none."""
    try:
        return int(tags.get(PRIORITY_TAG, "0"))
    except ValueError:
        return 0


def places(instance: dg.DagsterInstance) -> dict[str, Place]:
    """Run id → place, in the order in which Dagster's queue takes them: higher priority, then older ones."""
    waiting = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]), ascending=True)
    if not waiting:
        return {}
    under_way = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    running = instance.get_runs_count(dg.RunsFilter(statuses=under_way))
    ordered = sorted(waiting, key=lambda run: priority_of(run.tags), reverse=True)
    return {
        run.run_id: Place(position, len(ordered), running, run.tags.get(UPLOAD_TAG))
        for position, run in enumerate(ordered, start=1)
    }


def waits(instance: dg.DagsterInstance, rows: Sequence[Mapping[str, Any]]) -> dict[str, Waiting]:
    """Upload id → what it waits for, of those uploads that wait.

    Args:
        rows: of `current_status`.
    """
    concerned = [row for row in rows if row["state"] in WAITING_STATES]
    if not concerned:
        return {}
    found = places(instance)
    by_upload = {place.upload_id: place for place in found.values()}
    stopped = held_up(instance)
    told = {}
    for row in concerned:
        place = found.get(row["run_id"]) or by_upload.get(row["upload_id"])
        if row["state"] == "waiting-for-compute":
            reason = row["message"] or "a machine"
        elif place is not None:
            reason = stopped or str(place)
            reason += f". {row['message']}" if row["message"] else ""
        elif row["state"] == "received":
            reason = row["message"] or stopped or intake_pause(instance) or "its run is being asked for"
        else:
            reason = "its worker starts"
        told[row["upload_id"]] = Waiting(place, reason)
    return told


def held_up(instance: dg.DagsterInstance) -> str | None:
    """Why no queued run starts, whatever its place; None if nothing is known to hold them up."""
    heartbeat = instance.get_daemon_heartbeats().get(_DEQUEUER)
    if heartbeat is None:
        return "Dagster's daemon has not run yet"
    silent_s = time.time() - heartbeat.timestamp
    return f"Dagster's daemon has been silent for {silent_s:,.0f} s" if silent_s > _SILENT_S else None


def intake_pause(instance: dg.DagsterInstance) -> str | None:
    """Why new uploads are not taken from the queue of messages; None if they are."""
    state = read_breaker(instance)
    return f"intake is paused for {state.cause}: {state.told}" if state.paused else None


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
