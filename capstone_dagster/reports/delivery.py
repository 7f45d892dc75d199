"""DORA's figures of software delivery, from deployments and from the runs that failed under each. Pure.

docs/reports.md defines them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.reports.deployments import Deployment
from capstone_dagster.reports.records import EndedRuns, Period
from capstone_dagster.reports.shown import Report, Table, counted, duration, percent, percentile
from capstone_dagster.wall_clock import wall_clock

# What a change of the code, its image or its settings causes; the others come from videos, machines and AWS.
OF_A_CHANGE = frozenset(
    {
        FailureClass.INTERNAL,
        FailureClass.CONFIGURATION,
        FailureClass.CONTAINER_START,
        FailureClass.CODE_SERVER_UNREACHABLE,
        FailureClass.MODEL_UNAVAILABLE,
        FailureClass.PERMISSION_DENIED,
    }
)


@dataclass(frozen=True, slots=True)
class Release:
    """A deployment with what happened while it was the current one.

    Attributes:
        until: when the next one replaced it; None for the current one.
        rolled_back: the next one was a version that had been deployed before.
        is_rollback: it is such a version itself.
        runs: those that ended under it.
        failed_at: when the first run failed because of it; `restored_at`, when a run ended well for the first
            time after the last of them, or when the rollback was deployed. None: not at all, or not yet.
    """

    deployment: Deployment
    until: float | None = None
    rolled_back: bool = False
    is_rollback: bool = False
    runs: EndedRuns = field(default_factory=EndedRuns)
    failed_at: float | None = None
    restored_at: float | None = None

    @property
    def failed(self) -> bool:
        return self.rolled_back or self.failed_at is not None


@dataclass(frozen=True, slots=True)
class Delivery:
    """The five figures; times in seconds, shares of 1, None where there is nothing to compute from.

    Attributes:
        lead_time_s, restore_s: medians.
        change_failure_rate: deployments that failed.
        rework_rate: deployments that follow one that failed.
    """

    deployments: int
    a_week: float
    lead_time_s: float | None
    change_failure_rate: float | None
    restore_s: float | None
    rework_rate: float | None


def releases(
    deployments: Sequence[Deployment],
    runs: Sequence[EndedRuns],
    failures: Sequence[float],
    first_success_after: Callable[[float], float | None],
) -> list[Release]:
    """What happened under each deployment.

    Args:
        deployments: in their order.
        runs: of each of them.
        failures: when runs failed with a class of :data:`OF_A_CHANGE`.
        first_success_after: when a run ended well for the first time after a moment.
    """
    found: list[Release] = []
    known: set[str] = set()
    for place, (deployment, ended) in enumerate(zip(deployments, runs, strict=True)):
        following = deployments[place + 1] if place + 1 < len(deployments) else None
        until = None if following is None else following.seen
        rolled_back = following is not None and following.version in known
        those = [at for at in failures if deployment.seen <= at and (until is None or at < until)]
        failed_at = min(those, default=deployment.seen if rolled_back else None)
        restored = first_success_after(max(those)) if those else until
        found.append(
            Release(
                deployment,
                until,
                rolled_back,
                deployment.version in known,
                ended,
                failed_at,
                restored if failed_at is not None else None,
            )
        )
        known.add(deployment.version)
    return found


def delivery(history: Sequence[Release], period: Period) -> Delivery:
    """The figures of the deployments of a period; the history before it tells what they replaced."""
    chosen = [each for each in history if period.holds(each.deployment.seen)]
    leads = [
        lead
        for each in chosen
        if not each.is_rollback and (lead := _lead(each.deployment)) is not None and lead >= 0
    ]
    restores = [
        max(0.0, each.restored_at - each.failed_at)
        for each in chosen
        if each.failed_at is not None and each.restored_at is not None
    ]
    reworks = [
        after for before, after in pairwise(history) if before.failed and period.holds(after.deployment.seen)
    ]
    count = len(chosen)
    return Delivery(
        deployments=count,
        a_week=count / period.days * 7 if period.days else 0.0,
        lead_time_s=percentile(leads, 0.5),
        change_failure_rate=sum(each.failed for each in chosen) / count if count else None,
        restore_s=percentile(restores, 0.5),
        rework_rate=len(reworks) / count if count else None,
    )


def delivery_report(history: Sequence[Release], period: Period) -> Report:
    """The figures, and each deployment of the period."""
    figures = delivery(history, period)
    title = f"Software delivery since {wall_clock(period.since)}"
    chosen = [each for each in history if period.holds(each.deployment.seen)]
    shown = {**asdict(figures), "releases": [asdict(each) for each in chosen]}
    if not period.days:
        return Report(title, ["The period is empty: it begins at its end or later."], figures=shown)
    if not chosen:
        why = (
            "No version was deployed in this period."
            if history
            else "No deployment is on record: CAPSTONE_VERSION, which `make image` sets, is unknown."
        )
        return Report(title, [why], figures=shown)
    rows = [
        ("deployment frequency", f"{figures.a_week:.1f} a week"),
        ("lead time, from commit to deployment, median", duration(figures.lead_time_s)),
        ("change failure rate", percent(figures.change_failure_rate)),
        ("time to restore, median", duration(figures.restore_s)),
        ("rework rate", percent(figures.rework_rate)),
    ]
    numbers = frozenset({"runs", "failed"})
    return Report(
        title,
        [f"{counted(figures.deployments, 'deployment')} in {period.days:.0f} days."],
        [
            Table("DORA's figures", ("figure", "value"), rows),
            Table("Deployments", ("seen", "version", "lead time", "runs", "failed", "what became of it"),
                  [_row(each) for each in reversed(chosen)], numbers),
        ],
        shown,
        _notes(chosen),
    )  # fmt: skip


def _row(release: Release) -> tuple[str, ...]:
    deployment = release.deployment
    became = "rolled back" if release.rolled_back else "failed" if release.failed else ""
    if release.failed and release.restored_at is None:
        became += ", not restored"
    if release.is_rollback:
        became = f"a rollback; {became}".rstrip("; ")
    failed = sum(release.runs.failed.values())
    lead = None if release.is_rollback else _lead(deployment)
    return (
        wall_clock(deployment.seen), deployment.version[:12], duration(lead),
        f"{release.runs.count:,}", f"{failed:,}", became,
    )  # fmt: skip


def _notes(chosen: Sequence[Release]) -> list[str]:
    notes = []
    unknown = sum(each.deployment.committed is None for each in chosen)
    if unknown:
        notes.append(
            f"{counted(unknown, 'version')} without the time of its commit, CAPSTONE_COMMITTED_AT: no lead "
            "time."
        )
    backwards = sum((_lead(each.deployment) or 0.0) < 0 for each in chosen)
    if backwards:
        notes.append(
            f"{counted(backwards, 'version')} was deployed before its commit: a clock was set back. It has "
            "no lead time."
        )
    return notes


def _lead(deployment: Deployment) -> float | None:
    return None if deployment.committed is None else deployment.seen - deployment.committed
