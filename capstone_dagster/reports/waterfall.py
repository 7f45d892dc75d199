"""One upload's time as a waterfall: the spans of docs/tracing.md, from the pipeline's own records.

Spans themselves go to a collector, where one is named, and are kept nowhere here. Dagster's events and the
materialisations have the same times, also on a laptop, and also of a worker that was killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from capstone_dagster.reports.records import TracedRun
from capstone_dagster.reports.shown import Report, Table, counted, duration

_WIDTH = 40
_STATUS = {"SUCCESS": "succeeded", "FAILURE": "failed", "CANCELED": "cancelled", "STARTED": "running"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A span.

    Attributes:
        depth: 0 for what belongs to the upload, 1 within a run, 2 within a step.
        ended: None while it lasts, or where nothing has recorded its end.
    """

    name: str
    depth: int
    began: float
    ended: float | None
    note: str = ""


def waterfall(video_id: str, uploaded: float, runs: Sequence[TracedRun]) -> Report:
    """The report on one upload.

    Args:
        uploaded: when its object was uploaded.
    """
    title = f"Where the time of {video_id} went"
    if not runs:
        return Report(
            title,
            [
                "No run of this upload is on record: it waits for one, or its runs are older than "
                "CAPSTONE_RUN_RETENTION_DAYS."
            ],
            figures={"video_id": video_id, "spans": []},
        )
    bars = list(bars_of(uploaded, runs))
    begin = min(bar.began for bar in bars)
    end = max(bar.ended or bar.began for bar in bars)
    rows = [
        (
            "  " * bar.depth + bar.name,
            f"{bar.began - begin:.2f}",
            "" if bar.ended is None else f"{bar.ended - bar.began:.2f}",
            _drawn(bar, begin, end),
            bar.note,
        )
        for bar in bars
    ]
    sentences = [f"{duration(end - begin)} from the upload to the end of its last run."]
    longest = max(
        (bar for bar in bars if not _is_whole(bar)), key=lambda bar: (bar.ended or bar.began) - bar.began
    )
    if longest.ended is not None and end > begin:
        share = (longest.ended - longest.began) / (end - begin)
        sentences.append(f"The longest part is `{longest.name}`, with {share * 100:.0f} % of it.")
    backwards = sum(bar.ended is not None and bar.ended < bar.began for bar in bars)
    notes = (
        [f"{counted(backwards, 'span')} ended before it began: a clock was set back."] if backwards else []
    )
    return Report(
        title,
        sentences,
        [Table("Spans", ("span", "begins s", "takes s", "", ""), rows, frozenset({"begins s", "takes s"}))],
        {"video_id": video_id, "seconds": end - begin, "spans": [asdict(bar) for bar in bars]},
        notes,
    )


def bars_of(uploaded: float, runs: Sequence[TracedRun]) -> Iterator[Bar]:
    """The spans in the order in which they are shown."""
    # S3 has whole seconds, and another clock than Dagster's: a run is not requested before its upload.
    yield Bar("upload", 0, min(uploaded, runs[0].created), runs[0].created)
    for run in runs:
        status = _STATUS.get(run.status, run.status.lower().replace("_", " "))
        note = f"{status}: {run.failure}" if run.failure else status
        yield Bar(f"run {run.run_id[:8]} {run.job}", 0, run.created, run.ended, note)
        if run.enqueued is not None and (until := run.launched or run.started or run.ended) is not None:
            yield Bar("wait for a place", 1, run.enqueued, until)
        if run.launched is not None and (until := run.started or run.ended) is not None:
            yield Bar("launch the worker", 1, run.launched, until)
        for step in run.steps:
            ended = step.ended if step.ended is not None else run.ended
            outcome = {"done": "", "": "unfinished"}.get(step.outcome, step.outcome)
            yield Bar(step.name, 1, step.began, ended, outcome)
            if step.name == "analyze_video" and run.first_frame is not None and step.outcome == "done":
                if run.model_s:
                    # Its length is on record, and that the pass follows it; not when it began.
                    yield Bar(
                        "load the model", 2, max(step.began, run.first_frame - run.model_s), run.first_frame
                    )
                yield Bar("decode, detect, track", 2, run.first_frame, run.last_frame)


def _is_whole(bar: Bar) -> bool:
    return bar.name.startswith("run ") or bar.ended is None or bar.name == "analyze_video"


def _drawn(bar: Bar, begin: float, end: float) -> str:
    """Its place in time as a bar of characters."""
    scale = _WIDTH / max(end - begin, 1e-9)
    left = min(_WIDTH - 1, int((bar.began - begin) * scale))
    if bar.ended is None:
        return " " * left + "…"
    return " " * left + "█" * max(1, round((bar.ended - begin) * scale) - left)
