"""The service levels of a period, beside our goals and what the system before this one reached. Pure.

docs/reports.md defines each figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.past_incidents import PastIncident
from capstone_dagster.reports.records import LEGS, DayOfWork, EndedRuns, Journey, LostPass, Period, Uploads
from capstone_dagster.reports.shown import (
    Report,
    Table,
    counted,
    dollars,
    duration,
    percent,
    percentile,
)

# Failures of an upload, not of the service: no analysis could succeed.
OF_THE_UPLOAD = frozenset(
    {
        FailureClass.UNDECODABLE_VIDEO,
        FailureClass.SOURCE_MISSING,
        FailureClass.SOURCE_CHANGED,
        FailureClass.SOURCE_ARCHIVED,
    }
)
# Of uploads that can be analysed; what is left to 1 is the error budget.
SUCCESS_GOAL = 0.999
_DETECT_GOAL_S = 60.0
_RESTORE_GOAL_S = 1800.0
_CONNECTION_GOAL = 0.999
_MONTH_DAYS = 30
_SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a service report is computed from.

    Attributes:
        journeys: of the uploads that were analysed, at most the latest `journeys_most`.
        prevented: day (2026-01-31, UTC) → duplicates.
        usd_per_gpu_hour: None where no price is set.
    """

    period: Period
    uploads: Uploads
    journeys: Sequence[Journey]
    journeys_most: int
    work: Sequence[DayOfWork]
    ended: EndedRuns
    lost: Sequence[LostPass]
    incidents: Sequence[PastIncident]
    prevented: Mapping[str, int]
    usd_per_gpu_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """The figures. Shares are of 1, times in seconds; None where there is nothing to compute from.

    Attributes:
        uploads: those that ended, well or not.
        success: of those that could be analysed; `success_of_all`, of all.
        error_budget_left: share of the failures that the goal allows and that did not happen; negative where
            there were more.
        launched_duplicates: passes that repeated another run's work.
        connections: share of runs that did not fail because the event store was away.
        legs: leg → its 50th, 95th and 99th percentile; the last one is the whole way.
        speedup: how many times faster the second half of the days was than the first, in seconds of passes
            for each second of video.
        usd_a_video, usd_a_month: of GPU time.
    """

    since: str
    until: str
    uploads: int
    success: float | None
    success_of_all: float | None
    error_budget_left: float | None
    prevented_duplicates: int
    launched_duplicates: int
    wasted_gpu_s: float
    wasted_usd_a_month: float | None
    connections: float | None
    incidents: int
    detect_p50_s: float | None
    detect_max_s: float | None
    restore_p50_s: float | None
    restore_max_s: float | None
    legs: Mapping[str, Mapping[str, float | None]]
    speedup: float | None
    usd_a_video: float | None
    usd_a_month: float | None


def service(facts: Facts) -> Service:
    """The service levels of a period."""
    period, uploads = facts.period, facts.uploads
    own = sum(number for failure, number in uploads.failed.items() if failure not in OF_THE_UPLOAD)
    every = uploads.done + sum(uploads.failed.values())
    success = _ratio(uploads.done, uploads.done + own)
    database = facts.ended.failed.get(FailureClass.DATABASE_UNAVAILABLE, 0)
    incidents = [each for each in facts.incidents if period.holds(each.opened)]
    detected = [each.announced - each.opened for each in incidents if each.announced is not None]
    restored = [each.closed - each.opened for each in incidents if each.closed is not None]
    wasted_s = sum(each.seconds for each in facts.lost)
    gpu_s = sum(day.gpu_s for day in facts.work)
    passes = sum(day.passes for day in facts.work)
    usd_s = None if facts.usd_per_gpu_hour is None else facts.usd_per_gpu_hour / 3600
    days = [_day(period.since), _day(period.until)]
    return Service(
        since=_moment(period.since),
        until=_moment(period.until),
        uploads=every,
        success=success,
        success_of_all=_ratio(uploads.done, every),
        error_budget_left=None if success is None else 1 - (1 - success) / (1 - SUCCESS_GOAL),
        prevented_duplicates=sum(
            number for day, number in facts.prevented.items() if days[0] <= day <= days[1]
        ),
        launched_duplicates=sum(each.doubled for each in facts.lost),
        wasted_gpu_s=wasted_s,
        wasted_usd_a_month=_a_month(wasted_s, usd_s, period),
        connections=_ratio(facts.ended.count - database, facts.ended.count),
        incidents=len(incidents),
        detect_p50_s=percentile(_ordered(detected), 0.5),
        detect_max_s=max(_ordered(detected), default=None),
        restore_p50_s=percentile(_ordered(restored), 0.5),
        restore_max_s=max(_ordered(restored), default=None),
        legs=_percentiles(facts.journeys),
        speedup=_speedup(facts.work),
        usd_a_video=gpu_s * usd_s / passes if usd_s is not None and passes else None,
        usd_a_month=_a_month(gpu_s, usd_s, period),
    )


def service_report(facts: Facts) -> Report:
    """The service levels as a report."""
    figures = service(facts)
    title = f"Service report, {figures.since} to {figures.until}"
    if not facts.period.days:
        return Report(title, ["The period is empty: it begins at its end or later."], figures=asdict(figures))
    if not figures.uploads and not facts.ended.count:
        sentence = "No upload and no run ended in this period: there is nothing to report yet."
        return Report(title, [sentence], figures=asdict(figures))
    tables = [_levels(figures), _legs(figures), _failures(facts.uploads), _costs(figures)]
    return Report(
        title, _sentences(figures), [each for each in tables if each.rows], asdict(figures), _notes(facts)
    )


def _sentences(figures: Service) -> list[str]:
    of = counted(figures.uploads, "upload")
    lines = [f"{percent(figures.success)} of the uploads that could be analysed were, of {of} that ended."]
    left = figures.error_budget_left
    if left is not None:
        allowed = f"a goal of {percent(SUCCESS_GOAL)}"
        lines.append(
            f"{left * 100:.0f} % of the error budget is left, for {allowed}."
            if left >= 0
            else f"The error budget is used up {1 - left:.1f} times, for {allowed}."
        )
    if figures.speedup is not None:
        ratio = figures.speedup if figures.speedup >= 1 else 1 / figures.speedup
        trend = "faster" if figures.speedup >= 1 else "slower"
        lines.append(f"Passes were {ratio:.2f} times {trend} in the second half of the period.")
    return lines


def _levels(figures: Service) -> Table:
    def row(name: str, before: str, goal: str, value: float | None, text: str, met: bool) -> tuple[str, ...]:
        verdict: Literal["–", "met", "missed"] = "–" if value is None else "met" if met else "missed"
        return name, before, goal, text, verdict

    success, connections = figures.success or 0.0, figures.connections or 0.0
    wasted = figures.wasted_usd_a_month
    rows = [
        row("analyses that succeed", "73 % → 98.5 %", f"≥ {percent(SUCCESS_GOAL)}", figures.success,
            percent(figures.success), success >= SUCCESS_GOAL),
        row("duplicate passes launched", "50 % of jobs → 0", "0", figures.launched_duplicates,
            f"{figures.launched_duplicates:,}", not figures.launched_duplicates),
        row("duplicate requests prevented", "–", "–", None, f"{figures.prevented_duplicates:,}", True),
        row("time to detect an incident, median", "2 h → 5 min", f"≤ {duration(_DETECT_GOAL_S)}",
            figures.detect_p50_s, duration(figures.detect_p50_s),
            (figures.detect_p50_s or 0.0) <= _DETECT_GOAL_S),
        row("time to restore, median", "6 h → 30 min", f"≤ {duration(_RESTORE_GOAL_S)}",
            figures.restore_p50_s, duration(figures.restore_p50_s),
            (figures.restore_p50_s or 0.0) <= _RESTORE_GOAL_S),
        row("GPU time wasted", "–", "–", None, duration(figures.wasted_gpu_s), True),
        row("its cost in 30 days", "340 USD", "< 340 USD", wasted, dollars(wasted), (wasted or 0.0) < 340),
        row("runs that reach the event store", "99.8 %", f"≥ {percent(_CONNECTION_GOAL)}",
            figures.connections, percent(figures.connections), connections >= _CONNECTION_GOAL),
    ]  # fmt: skip
    return Table("Service levels", ("level", "system before", "goal", "measured", ""), rows)


def _legs(figures: Service) -> Table:
    rows = [
        (leg, *(duration(each) for each in shares.values()))
        for leg, shares in figures.legs.items()
        if any(each is not None for each in shares.values())
    ]
    return Table("Time of each leg", ("leg", "p50", "p95", "p99"), rows, frozenset({"p50", "p95", "p99"}))


def _failures(uploads: Uploads) -> Table:
    worst = sorted(uploads.failed.items(), key=lambda each: (-each[1], each[0]))
    rows = [
        (failure, f"{number:,}", "the upload" if failure in OF_THE_UPLOAD else "the service")
        for failure, number in worst
    ]
    return Table("Uploads that failed", ("class", "uploads", "counts against"), rows, frozenset({"uploads"}))


def _costs(figures: Service) -> Table:
    rows = [
        ("a video", dollars(figures.usd_a_video)),
        (f"{_MONTH_DAYS} days like these", dollars(figures.usd_a_month)),
    ]
    return Table("Cost of GPU time", ("of", "costs"), rows if figures.usd_a_month is not None else [])


def _notes(facts: Facts) -> list[str]:
    notes = []
    if facts.usd_per_gpu_hour is None:
        notes.append("CAPSTONE_GPU_USD_PER_HOUR is not set, so nothing has a cost.")
    backwards = sum(any(each < 0 for each in journey.legs().values()) for journey in facts.journeys)
    if backwards:
        notes.append(
            f"{counted(backwards, 'upload')} left a stage before it was reached: clocks differ, or one was "
            "set back. Those legs count as 0."
        )
    if len(facts.journeys) == facts.journeys_most:
        notes.append(f"Times of legs are those of the latest {facts.journeys_most:,} analysed uploads.")
    since = min(facts.prevented, default=None)
    if since is None or since > _day(facts.period.since):
        notes.append(f"Prevented duplicates are counted since {since or 'now'}.")
    silent = sum(each.announced is None and facts.period.holds(each.opened) for each in facts.incidents)
    if silent:
        notes.append(f"{counted(silent, 'incident')} had no notice, so it has no time to detect.")
    lasting = sum(each.closed is None and facts.period.holds(each.opened) for each in facts.incidents)
    if lasting:
        notes.append(f"{counted(lasting, 'incident')} has not been restored.")
    return notes


def _percentiles(journeys: Sequence[Journey]) -> dict[str, dict[str, float | None]]:
    found: dict[str, list[float]] = {leg: [] for leg in (*LEGS, "upload → published")}
    for journey in journeys:
        for leg, seconds in journey.legs().items():
            found[leg].append(max(0.0, seconds))
        if journey.whole_s is not None:
            found["upload → published"].append(max(0.0, journey.whole_s))
    return {
        leg: {f"p{share * 100:.0f}": percentile(seconds, share) for share in _SHARES}
        for leg, seconds in found.items()
    }


def _speedup(work: Sequence[DayOfWork]) -> float | None:
    days = [day for day in work if day.video_s > 0 and day.seconds > 0]
    if len(days) < 2:
        return None
    half = len(days) // 2
    before, after = (
        sum(day.seconds for day in part) / sum(day.video_s for day in part)
        for part in (days[:half], days[half:])
    )
    return before / after


def _ordered(seconds: Sequence[float]) -> list[float]:
    """Without negative lengths, which clocks leave that were set back."""
    return sorted(max(0.0, each) for each in seconds)


def _a_month(seconds: float, usd_s: float | None, period: Period) -> float | None:
    return None if usd_s is None or not period.days else seconds * usd_s / period.days * _MONTH_DAYS


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()


def _moment(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
