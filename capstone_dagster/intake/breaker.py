"""Intake's circuit breaker: when it pauses, when a probe may run, and when it resumes. Pure.

A systemic failure (the database, the model, a permission) fails every run after it has cost a machine. Then
messages are better off in the queue, where they cost nothing. Now and then one run, the probe, is let
through; its success ends the pause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from capstone_dagster.failures.breaker_state import (
    DUPLICATE_JOB,
    OPERATOR,
    BreakerState,
    Phase,
    Probe,
)
from capstone_dagster.failures.classes import POLICIES, SHOWN_BY_ANY_RUN, SYSTEMIC, FailureClass
from capstone_dagster.failures.recent import EndedRun
from capstone_dagster.intake.orders import Order

# 1, 2, 4 … 30 minutes: the first is as long as a failing run takes with its start; the last bounds how long
# nobody notices that the cause is gone.
FIRST_INTERVAL_S = 60.0
LONGEST_INTERVAL_S = 1800.0
# A probe of which no run is on record after this long will not come by itself: an upload's message would have
# been delivered again meanwhile (180 s), a re-execution's sensor would have ticked many times.
UPLOAD_LOST_S = 240.0
REEXECUTION_LOST_S = 60.0
# A probe that is still under way is a long video, or hangs until its job's time is over, hours later: it must
# not be the only one by which intake learns that the cause is gone. Its own success counts when it comes.
PROBE_PATIENCE_S = LONGEST_INTERVAL_S
# Of runs that doubled GPU work the breaker reacts to each once; nobody has this many in a day.
_REMEMBERED = 200


ProbeFate = EndedRun | Literal["missing", "under way", "canceled"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a tick has seen.

    Attributes:
        ended: the last runs, newest first.
        duplicates: ids of the last runs, running ones included, that doubled another one's GPU work.
        probe: what became of the probe; None if none is out.
        reachable: whether the cause itself answers to a call that takes no run; None if it has no such call.
    """

    ended: Sequence[EndedRun] = ()
    duplicates: Sequence[str] = ()
    probe: ProbeFate | None = None
    reachable: bool | None = None


def advance(
    state: BreakerState, seen: Seen, *, now: float, pause_after: int, order: Order | None = None
) -> BreakerState:
    """The breaker after a look at the world.

    Args:
        now: seconds since 1970.
        pause_after: number of consecutive uploads that must fail for one systemic class.
        order: the last one that an operator gave; followed once.
    """
    new = [run_id for run_id in seen.duplicates if run_id not in state.duplicates]
    remembered = tuple(dict.fromkeys((*seen.duplicates, *state.duplicates)))[:_REMEMBERED]
    state = replace(state, duplicates=remembered)
    if order is not None and order.at > state.order_at:
        return _ordered(state, order, now)
    if state.paused and state.cause == OPERATOR:
        return state
    if state.paused:
        return _paused(state, seen, now)
    if new:
        reason = f"Run {new[0]} did GPU work that another run had done or was doing."
        return _open(state, DUPLICATE_JOB, reason, now)
    for cause in sorted(SYSTEMIC):
        uploads = _streak(cause, seen.ended, state.since)
        if len(uploads) >= pause_after:
            reason = (
                f"{len(uploads)} uploads in a row failed for {cause.value}, the last in run {uploads[0]}. "
                f"What to do: {POLICIES[cause].remedy}"
            )
            return _open(state, cause.value, reason, now)
    return state


def probe_is_due(state: BreakerState, seen: Seen, now: float) -> bool:
    """Whether one run may be let through now. One that could only fail is not."""
    return (
        state.phase is Phase.OPEN
        and state.cause != OPERATOR
        and now >= state.next_probe_at
        and seen.reachable is not False
    )


def release(state: BreakerState, probe: Probe) -> BreakerState:
    """The breaker with its probe out."""
    return replace(state, phase=Phase.HALF_OPEN, probe=probe, probes=state.probes + 1)


def _ordered(state: BreakerState, order: Order, now: float) -> BreakerState:
    reason = f"{order.by}: {order.why}"
    if order.wanted == "pause":
        since = state.since if state.paused else now
        return BreakerState(
            Phase.OPEN,
            since=since,
            cause=OPERATOR,
            reason=reason,
            by=order.by,
            paused_since=since,
            duplicates=state.duplicates,
            order_at=order.at,
        )
    if not state.paused:
        return replace(state, order_at=order.at)
    return replace(_closed(state, reason, now), by=order.by, order_at=order.at)


def _paused(state: BreakerState, seen: Seen, now: float) -> BreakerState:
    if seen.reachable is False:
        state = replace(state, unreachable=True)
    elif seen.reachable and state.unreachable:
        # It was away and is back: no reason to wait for the next probe's time.
        state = replace(state, unreachable=False, next_probe_at=now)
    showing = next((run for run in seen.ended if _shows_recovery(state, seen, run)), None)
    if showing is not None:
        return _closed(state, f"Run {showing.run_id} succeeded.", now)
    if state.probe is None:
        return state
    if isinstance(seen.probe, EndedRun):
        if seen.probe.failure is None and seen.probe.run_id not in seen.duplicates:
            return _closed(state, f"The probe, run {seen.probe.run_id}, succeeded.", now)
        return _after_failed_probe(state, seen.probe, now)
    if seen.probe == "canceled":
        return _again(state, now + FIRST_INTERVAL_S)
    limit = UPLOAD_LOST_S if state.probe.reexecutes is None else REEXECUTION_LOST_S
    out_s = now - state.probe.released_at
    if out_s > (limit if seen.probe == "missing" else PROBE_PATIENCE_S):
        return _again(state, now)
    return state


def _after_failed_probe(state: BreakerState, probe: EndedRun, now: float) -> BreakerState:
    if probe.failure is not None and not probe.systemic:
        # Its video's own fault says nothing of the cause: the next probe will.
        return _again(state, now + FIRST_INTERVAL_S)
    interval = min(2 * state.interval_s, LONGEST_INTERVAL_S)
    if probe.systemic and probe.failure is not None and probe.failure.value != state.cause:
        reason = f"The probe, run {probe.run_id}, failed for {probe.failure.value} after {state.cause}."
        reason += f" What to do: {POLICIES[probe.failure].remedy}"
        state = replace(state, cause=probe.failure.value, reason=reason, unreachable=False)
    return replace(_again(state, now + interval), interval_s=interval)


def _again(state: BreakerState, at: float) -> BreakerState:
    return replace(state, phase=Phase.OPEN, probe=None, next_probe_at=at)


def _open(state: BreakerState, cause: str, reason: str, now: float) -> BreakerState:
    return BreakerState(
        Phase.OPEN,
        since=now,
        cause=cause,
        reason=reason,
        paused_since=now,
        interval_s=FIRST_INTERVAL_S,
        next_probe_at=now + FIRST_INTERVAL_S,
        duplicates=state.duplicates,
        order_at=state.order_at,
    )


def _closed(state: BreakerState, reason: str, now: float) -> BreakerState:
    return BreakerState(
        Phase.CLOSED,
        since=now,
        cause=state.cause,
        reason=reason,
        paused_since=state.since,
        probes=state.probes,
        duplicates=state.duplicates,
        order_at=state.order_at,
    )


def _shows_recovery(state: BreakerState, seen: Seen, run: EndedRun) -> bool:
    """A run that began in the pause, used what had failed, and succeeded; it need not be the probe."""
    met = run.whole or state.cause in SHOWN_BY_ANY_RUN
    return run.failure is None and run.started_at >= state.since and met and run.run_id not in seen.duplicates


def _streak(cause: FailureClass, ended: Sequence[EndedRun], since: float) -> list[str]:
    """The last run of each upload that failed for this class since a run last got past it, newest first.

    Failures that are of a video say neither that the cause is there nor that it is gone.
    """
    uploads: dict[str, str] = {}
    for run in ended:
        if run.started_at < since:
            continue  # judged before the last pause ended
        if run.failure == cause and run.systemic:
            uploads.setdefault(run.upload, run.run_id)
        elif run.systemic or (run.failure is None and (run.whole or cause in SHOWN_BY_ANY_RUN)):
            break
    return list(uploads.values())
