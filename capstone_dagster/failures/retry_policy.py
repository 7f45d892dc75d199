"""Which failed runs are started again, when, and which are left alone. Pure.

The decision is made here and nowhere else: notices and statuses quote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capstone_dagster.failures.breaker_state import DUPLICATE_JOB, OPERATOR, BreakerState
from capstone_dagster.failures.classes import POLICIES, SYSTEMIC, FailureClass
from capstone_dagster.wall_clock import wall_clock

# After the first, second and every further failure of a request: a failover takes less than the first, a
# throttled service or a machine's replacement less than the last.
DELAYS_S = (30.0, 120.0, 600.0)
# A class that is not transient is started again only after intake has paused for it and resumed,
# which shows that it was mended. For so long it may turn out that intake pauses for it.
_MAY_PAUSE_S = 600.0
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that failed.

    Attributes:
        upload_id: None where it is a backfill's, of several videos maybe.
        ended_at: seconds since 1970.
        attempts: how often the system has started its request again before.
        gpu: what is left to do takes the GPU; None as long as that is unknown.
        progress: the share of the video that its pass had done, 0–1; None as long as that is unknown.
        before: the classes by which earlier tries failed in their pass.
        reclaimed: its machine was taken away, which is not its video's doing.
        job: its name in Dagster.
        kept_going: the system finishes its work; of other runs only lost workers are replaced.
    """

    run_id: str
    upload_id: str | None
    failure: FailureClass
    ended_at: float
    attempts: int
    gpu: bool | None = None
    job: str = ""
    kept_going: bool = True
    progress: float | None = None
    before: Sequence[str] = ()
    reclaimed: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """It is started again now.

    Attributes:
        probe: as the probe that intake's breaker waits for.
    """

    probe: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """It is looked at again later.

    Attributes:
        until: when it is due, seconds since 1970; None if that depends on something else.
        outlook: what it waits for, in a sentence for the upload's status; empty without a promise.
        offered: intake's breaker may have it as a probe.
        refused: the hourly budget is used up.
    """

    until: float | None = None
    outlook: str = ""
    offered: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """It is not started again.

    Attributes:
        outlook: why, in a sentence for the upload's status; empty if its class says enough.
        refused: its video's budget is used up.
    """

    outlook: str = ""
    refused: bool = False


Decision = Start | Wait | Leave


@dataclass(frozen=True, slots=True)
class Budget:
    """How much the system may start again.

    Attributes:
        per_video: of one request, in all.
        per_hour: runs that take the GPU. Those that only publish cost next to nothing, and are not counted.
        started: when such runs were started lately, seconds since 1970.
    """

    per_video: int
    per_hour: int
    started: Sequence[float] = ()

    def spent(self, now: float) -> bool:
        """Whether the last hour's share is used up."""
        return len(self.lately(now)) >= self.per_hour

    def lately(self, now: float) -> list[float]:
        """The starts of the last hour."""
        return [at for at in self.started if now - at < _HOUR_S]


def failed_for_good(failure_class: str | None) -> bool:
    """Whether a video that failed so fails again, whatever is mended in the system."""
    classes = {each.value: each for each in FailureClass}
    failure = classes.get(failure_class or "", FailureClass.INTERNAL)
    return not POLICIES[failure].transient and failure not in SYSTEMIC


def will_try_again(failed: FailedRun, per_video: int) -> bool:
    """Whether the system starts a failed run's request again, sooner or later, as far as that is known."""
    kept = failed.kept_going or failed.failure == FailureClass.WORKER_LOST
    return kept and POLICIES[failed.failure].transient and failed.attempts < per_video


def delay_s(failed: FailedRun) -> float:
    """How long after its failure a run is started again."""
    if failed.failure == FailureClass.WORKER_LOST and failed.attempts == 0:
        return 0.0  # its machine is gone: waiting mends nothing
    return DELAYS_S[min(failed.attempts, len(DELAYS_S) - 1)]


def outlook(decision: Decision, failure: FailureClass) -> str:
    """What happens next, in one sentence."""
    if isinstance(decision, Start):
        return "It is tried again now."
    if decision.outlook:
        return decision.outlook
    if isinstance(decision, Wait):
        return "It is not tried again, unless intake pauses for it and resumes."
    if failure == FailureClass.SOURCE_CHANGED:
        return "It is not tried again: the newer upload has a run of its own."
    return "It is not tried again."


def _why_futile(failed: FailedRun) -> str | None:
    """Why another pass over the same video would end in the same way, as far as that shows; else None."""
    again = failed.failure in failed.before
    if failed.failure == FailureClass.WORKER_LOST and again and not failed.reclaimed:
        return "its worker died twice at this video"
    if failed.failure == FailureClass.TIMEOUT and again:
        return "it reached the time limit twice"
    if failed.failure == FailureClass.TIMEOUT and failed.progress == 0:
        return "it made no progress within the time limit"
    return None


def judge(failed: FailedRun, breaker: BreakerState, budget: Budget, now: float) -> Decision:
    """What becomes of a failed run.

    Args:
        now: seconds since 1970.
    """
    if not failed.kept_going and failed.failure != FailureClass.WORKER_LOST:
        return Leave(f"Runs of {failed.job} are not started again by the system.")
    paused_for_it = breaker.paused and breaker.cause == failed.failure
    # The pause for its class has ended since it failed: what it failed of is mended.
    mended = not breaker.paused and breaker.cause == failed.failure and breaker.since > failed.ended_at
    if not POLICIES[failed.failure].transient and not paused_for_it and not mended:
        if failed.failure in SYSTEMIC and now - failed.ended_at < _MAY_PAUSE_S:
            return Wait()
        return Leave()
    if failed.gpu and (futile := _why_futile(failed)):
        return Leave(f"It is not tried again: {futile}.")
    if failed.attempts >= budget.per_video:
        allowed = f"CAPSTONE_REEXECUTIONS_PER_VIDEO ({budget.per_video})"
        return Leave(f"It is not tried again: {allowed} is used up.", refused=True)
    which = f"attempt {failed.attempts + 1} of {budget.per_video}"
    if paused_for_it:
        if breaker.probe is not None and breaker.probe.reexecutes == failed.run_id:
            return Start(probe=True)
        return Wait(outlook=f"It is tried again once {failed.failure} is over ({which}).", offered=True)
    if breaker.paused and breaker.cause in (OPERATOR, DUPLICATE_JOB):
        return Wait(outlook=f"It is tried again when intake resumes ({which}).")
    due = failed.ended_at + delay_s(failed)
    if now < due and not mended:
        return Wait(due, outlook=f"It is tried again at {wall_clock(due)} ({which}).")
    if failed.gpu and budget.spent(now):
        return Wait(
            outlook=f"It is tried again when CAPSTONE_REEXECUTIONS_PER_HOUR allows ({which}).", refused=True
        )
    return Start()
