"""Where time goes over many uploads, which part holds the others up, and what to change. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from capstone_dagster.reports.records import LEGS, Journey, Period, Statement
from capstone_dagster.reports.shown import Report, Table, counted, duration, percent, percentile
from capstone_dagster.wall_clock import wall_clock

# What to change where a leg takes longest, in the order of the legs.
REMEDIES = dict(
    zip(
        LEGS,
        (
            "Uploads wait for intake: `capstone intake status` says whether it is paused or its queue is "
            "full; the upload sensor's tick is at most some seconds of it.",
            "Runs wait for a place or a machine: raise the limit of the pool `gpu`, or the number of "
            "machines that AWS Batch may start.",
            "Workers take long until they look at the first frame: keep the model in the image (`make "
            "image MODEL=`), and see in `capstone trace` what precedes that frame.",
            "The pass itself takes longest: lower CAPSTONE_SAMPLE_FPS, set CAPSTONE_MOTION_GATE, or use a "
            "faster GPU or a smaller model.",
            "Storing and publishing take longest: see the slow statements below, and S3.",
        ),
        strict=True,
    )
)
_SHARES = (0.5, 0.95)
_CHARACTERS = 90


@dataclass(frozen=True, slots=True)
class Performance:
    """The figures. Times are in seconds, shares of 1; None where there is nothing to compute from.

    Attributes:
        legs: leg → share of all the time, and its percentiles.
        bottleneck: the leg that most of the time goes to; `remedy`, what to change.
        gpu_idle: share of the time that workers with a GPU held it without passing over pixels.
    """

    uploads: int
    legs: Mapping[str, Mapping[str, float | None]]
    bottleneck: str | None
    remedy: str | None
    gpu_idle: float | None


def performance(journeys: Sequence[Journey]) -> Performance:
    """The figures of some uploads."""
    seconds: dict[str, list[float]] = {leg: [] for leg in LEGS}
    for journey in journeys:
        for leg, took in journey.legs().items():
            seconds[leg].append(max(0.0, took))
    totals = {leg: sum(those) for leg, those in seconds.items()}
    every = sum(totals.values())
    bottleneck = max(LEGS, key=lambda leg: totals[leg]) if every else None
    legs = {
        leg: {
            "share": totals[leg] / every if every else None,
            **{f"p{share * 100:.0f}": percentile(seconds[leg], share) for share in _SHARES},
        }
        for leg in LEGS
    }
    remedy = None if bottleneck is None else REMEDIES[bottleneck]
    return Performance(len(journeys), legs, bottleneck, remedy, _gpu_idle(journeys))


def performance_report(
    journeys: Sequence[Journey],
    statements: Sequence[Statement] | None,
    period: Period,
    *,
    most: int,
    video_id: str | None = None,
) -> Report:
    """The report on a period's uploads, or on those of one video.

    Args:
        statements: None where PostgreSQL does not count them.
        most: how many uploads were looked at, at most.
    """
    of = "" if video_id is None else f" of {video_id}"
    title = f"Performance{of} since {wall_clock(period.since)}"
    figures = performance(journeys)
    shown = {**asdict(figures), "statements": [asdict(each) for each in statements or ()]}
    if not journeys:
        why = (
            "No upload was analysed" if period.days else "The period is empty: it begins at its end or later"
        )
        return Report(title, [f"{why}{' in this period' if period.days else ''}."], figures=shown)
    sentences = [f"{counted(len(journeys), 'analysed upload')}."]
    if figures.bottleneck is not None:
        share = figures.legs[figures.bottleneck]["share"]
        sentences.append(f"{percent(share)} of the time is `{figures.bottleneck}`. {figures.remedy}")
    if figures.gpu_idle is not None:
        sentences.append(
            f"Workers held a GPU for {percent(figures.gpu_idle)} of their time without using it."
        )
    rows = [
        (leg, percent(those["share"]), duration(those["p50"]), duration(those["p95"]))
        for leg, those in figures.legs.items()
    ]
    tables = [Table("Legs", ("leg", "share", "p50", "p95"), rows, frozenset({"share", "p50", "p95"}))]
    notes = [f"Only the latest {most:,} uploads were looked at."] if len(journeys) == most else []
    if figures.gpu_idle is None:
        notes.append("No pass used a GPU, so none can be idle.")
    if statements is None:
        notes.append(
            "Slow statements are not known: this database has no pg_stat_statements. The embedded PostgreSQL "
            "comes without it."
        )
    elif statements:
        tables.append(
            Table(
                "Statements that took longest",
                ("calls", "mean ms", "total", "statement"),
                [
                    (
                        f"{each.calls:,}",
                        f"{each.mean_ms:.1f}",
                        duration(each.total_s),
                        each.text[:_CHARACTERS],
                    )
                    for each in statements
                ],
                frozenset({"calls", "mean ms", "total"}),
            )
        )
    return Report(title, sentences, tables, shown, notes)


def _gpu_idle(journeys: Sequence[Journey]) -> float | None:
    """Of uploads that used a GPU: what lies between a run's start and its publication, without the pass."""
    held = [
        (journey.published - journey.started, journey.gpu_s)
        for journey in journeys
        if journey.gpu_s and journey.started is not None and journey.published is not None
    ]
    whole = sum(max(seconds, gpu_s) for seconds, gpu_s in held)
    return 1 - sum(gpu_s for _, gpu_s in held) / whole if whole else None
