"""The state of intake's circuit breaker: whether intake has paused itself, and why.

Kept in Dagster's own storage, not in the event store, which may be what failed. Intake alone writes it
(`intake/breaker.py` decides when it changes); metrics, notices, re-execution and `capstone intake` read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from capstone_dagster.failures.cursors import Kept
from capstone_dagster.run_tags import PRIORITY_TAG, PROBE_TAG
from capstone_dagster.wall_clock import wall_clock

# What pauses intake beside failure classes, in the place of one.
DUPLICATE_JOB = "duplicate-job"
OPERATOR = "operator"
# On the run of a probe; it goes before all that wait, whatever a back end asked for (at most 1000).
PROBE_TAGS = {PROBE_TAG: "true", PRIORITY_TAG: "1001"}


class Phase(StrEnum):
    """The phases of a circuit breaker; intake takes new work only while it is `closed`."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Probe:
    """The one run that was let through to see whether the cause is gone.

    Attributes:
        released_at: when, seconds since 1970.
        run_key: of the upload that was let through; None if it is a re-execution.
        reexecutes: id of the failed run that is to be started again; None if it is a new upload.
    """

    released_at: float
    run_key: str | None = None
    reexecutes: str | None = None


@dataclass(frozen=True, slots=True)
class BreakerState:
    """What the breaker remembers. Times are seconds since 1970.

    Attributes:
        since: when the pause began; of a closed breaker, when the last pause ended (0: there was none).
        cause: the failure class that paused intake, `duplicate-job` or `operator`; of a closed breaker, of
            the last pause, None if there was none.
        reason: why, in one sentence.
        by: who ordered it, if an operator did.
        paused_since: of a closed breaker, when the last pause began; else as `since`.
        interval_s: how long it is from one probe's end to the next one.
        next_probe_at: when the next probe is due.
        probes: how many were let through in this pause.
        probe: the one that is out; only of a half-open breaker.
        unreachable: the cause itself was seen in this pause, by a call that takes no run.
        duplicates: ids of the runs, of those seen lately, that doubled GPU work and were reacted to.
        order_at: when the last order was given that an operator's command left and that was followed.
    """

    phase: Phase = Phase.CLOSED
    since: float = 0.0
    cause: str | None = None
    reason: str = ""
    by: str | None = None
    paused_since: float = 0.0
    interval_s: float = 0.0
    next_probe_at: float = 0.0
    probes: int = 0
    probe: Probe | None = None
    unreachable: bool = False
    duplicates: tuple[str, ...] = ()
    order_at: float = 0.0

    @property
    def paused(self) -> bool:
        """Whether messages stay in the queue, apart from a probe."""
        return self.phase is not Phase.CLOSED


def describe(state: BreakerState) -> str:
    """The state in sentences, for the tick and for `capstone intake status`."""
    if not state.paused:
        if state.cause is None:
            return "Intake runs."
        return f"Intake runs. It was paused for {state.cause} until {wall_clock(state.since)}: {state.reason}"
    summary = f"Intake is paused since {wall_clock(state.since)} for {state.cause}: {state.reason}"
    if state.cause == OPERATOR:
        return f"{summary} Messages stay in the queue until `capstone intake resume`."
    if state.probe is not None:
        what = "a re-execution" if state.probe.reexecutes else "an upload"
        since = wall_clock(state.probe.released_at)
        return f"{summary} Messages stay in the queue. A probe, {what}, is out since {since}."
    return (
        f"{summary} Messages stay in the queue. The next probe is due at {wall_clock(state.next_probe_at)} "
        f"({state.probes} so far)."
    )


BREAKER = Kept("capstone/intake/breaker", BreakerState, BreakerState)
"""The breaker as intake's last tick left it, closed if there was none yet; only intake's tick writes it."""

OFFERS: Kept[dict[str, str]] = Kept("capstone/reexecution/offers", dict[str, str], dict)
"""Failed runs (ids to failure classes) of which re-execution waits for the breaker: cheap probes. Only the
sensor that re-executes writes it."""
