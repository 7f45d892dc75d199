"""The rules of the asset checks, as pure functions: facts about a video's results in, a finding out.

An ERROR is a contradiction: something is broken, and what was made of it is not to be trusted. A WARN is
something unusual, which a person should look at; the results may be right.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

from capstone_dagster.analysis import DetectionSummary, Event, Visibility
from capstone_dagster.assets.steps.check_facts import SHORT_MS, DetectionFacts, FrameFacts
from capstone_dagster.storage.analysis_statistics import AnalysisFigures

# Where one of these finds a contradiction, no events are made of the detections.
BLOCKING = frozenset({"frames_complete", "boxes_inside_frame", "scores_in_range", "configured_model"})

# Recorders drop a frame now and then; one in twenty is no longer now and then.
_MISSING_SHARE = 0.05
# A few short tracks are in every video; when half of all are short, it is a defect.
_SHORT_SHARE = 0.5
_TRACKS_TO_JUDGE = 10
# Real footage, sharp, has 0.19 to 0.39 at the size of a tile, and 0.62 to 0.87 once it is blurred by three
# pixels of it (19 clips of streets, rooms and faces; two of little contrast stay below). Of the same clips
# 95 % of the pixels are up to 0.5 bright at least, contrast is 0.05 at least, and 4 % of the frames still at
# most. Of a picture that was frozen and coded by x264 with a key frame every 25 some 70 % are still (what
# follows a key frame makes it better little by little); of an empty room with a camera's noise of 2 to 4
# values of 255 and strong compression (crf 28) 21 % at most.
_BLURRED = 0.6
_DARK = 0.1
_FLAT = 0.02
_STILL_SHARE = 0.5
_STILL_FOR_MS = 10_000
# A camera's history says nothing before it has this many videos: of fewer, the median deviation is itself off
# by more than a quarter (its relative standard error is 1.16 / √n where values are normally distributed).
HISTORY_FLOOR = 20
# Iglewicz and Hoaglin, How to detect and handle outliers (1993): values whose modified z-score is above 3.5
# are outliers. 1.4826 makes the median deviation comparable to a standard deviation.
_OUTLIER = 3.5
_TO_SIGMA = 1.4826
# However alike a camera's videos have been: no less than a threefold rate, or 0.1 of confidence, is unusual.
_RATE_FACTOR = 3.0
_CONFIDENCE_STEP = 0.1

Values = Mapping[str, int | float | str]


class Severity(StrEnum):
    """How bad it is that a check failed."""

    ERROR = "ERROR"
    WARN = "WARN"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        reason: whole sentences; also where it passed.
        values: the numbers it was judged by.
    """

    check: str
    passed: bool
    severity: Severity
    reason: str
    values: Values = field(default_factory=dict)

    @property
    def contradicts(self) -> bool:
        """The results cannot be true."""
        return not self.passed and self.severity == Severity.ERROR


def frames_complete(frames: FrameFacts, summary: DetectionSummary) -> Finding:
    """All frames that were decoded are there, and the timestamps ask for no others."""
    expected = frames.rows + frames.missing
    values = {"frames": frames.rows, "frames_expected": expected}
    wrong = _sentence(
        (
            frames.rows != summary.frames_decoded,
            f"{summary.frames_decoded} frames were decoded and {frames.rows} are stored",
        ),
        (
            frames.analyzed != summary.frames_analyzed,
            f"{summary.frames_analyzed} were analysed and {frames.analyzed} are marked so",
        ),
        (
            frames.detections != summary.detections,
            f"they count {frames.detections} detections and there are {summary.detections}",
        ),
        (not frames.in_order, "they are not numbered one by one, or their timestamps run backwards"),
        (
            frames.last_pts_ms > summary.duration_ms,
            f"the last is shown at {frames.last_pts_ms} ms of a video of {summary.duration_ms} ms",
        ),
    )
    if wrong:
        reason = (
            f"The frames contradict each other: {wrong}. The stored files are damaged or of two passes: "
            "analyse the video again with `force`."
        )
        return Finding("frames_complete", False, Severity.ERROR, reason, values)
    doubts = _sentence(
        (summary.truncated, "the file ends before its stated end, or in an error"),
        (summary.decode_errors, f"{summary.decode_errors} parts of it could not be decoded"),
        (summary.corrupt_frames, f"{summary.corrupt_frames} of its pictures are damaged"),
        (summary.size_changes, f"their size changes {summary.size_changes} times"),
        (
            frames.missing > _MISSING_SHARE * expected,
            f"its timestamps leave room for {expected} frames: {frames.missing} are missing "
            f"({frames.missing / max(expected, 1):.0%}), or its rate varies",
        ),
    )
    if doubts:
        reason = (
            f"{frames.rows} frames were analysed, but {doubts}. What was to be seen there may be lost; look "
            "at the recorder and the transfer."
        )
        return Finding("frames_complete", False, Severity.WARN, reason, values)
    return Finding("frames_complete", True, Severity.ERROR, f"All {frames.rows} frames are there.", values)


def boxes_inside_frame(found: DetectionFacts, summary: DetectionSummary) -> Finding:
    """Each detection is stored, with a box that lies in the frame."""
    wrong = _sentence(
        (
            found.rows != summary.detections,
            f"{summary.detections} detections were made and {found.rows} are stored",
        ),
        (
            found.outside,
            f"{found.outside} boxes are empty or outside the frame of {summary.width} × {summary.height} "
            "pixels",
        ),
    )
    return _integrity("boxes_inside_frame", wrong, f"{found.rows} boxes, all in the frame.", found.outside)


def scores_in_range(found: DetectionFacts, min_score: float) -> Finding:
    """Each score is a probability that the settings let through."""
    count = found.out_of_range
    wrong = _sentence((count, f"{count} scores are not between {min_score} and 1"))
    return _integrity(
        "scores_in_range", wrong, f"All {found.rows} scores lie between {min_score} and 1.", count
    )


def configured_model(summary: DetectionSummary, *, name: str, sha256: str | None, requested: bool) -> Finding:
    """The model is the one that is configured, or that the request named.

    Names alone prove nothing: where they differ and the file is not at hand, it is a warning.

    Args:
        name: of the model that was to be used.
        sha256: of its file, where that is known without fetching it.
        requested: the request named it.
    """
    used, which = summary.model, "that the request named" if requested else "that is configured"
    values = {"model": used, "model_sha256": summary.model_sha256, "expected": name}
    same = sha256 == summary.model_sha256 if sha256 is not None else _stem(used) == _stem(name)
    if same:
        reason = f"Analysed with {used}, the model {which}."
    else:
        reason = (
            f"The model {which} is {name}{f' ({sha256[:12]}…)' if sha256 else ''}, but the video was "
            f"analysed with {used} ({summary.model_sha256[:12]}…). Analyse it again: "
            "materialise `detections` of this partition."
        )
    severity = Severity.WARN if sha256 is None else Severity.ERROR
    return Finding("configured_model", same, severity, reason, values)


def picture_visible(seen: Visibility, still: float, duration_ms: int) -> Finding:
    """There is something to be seen: no black, covered, blurred or frozen picture."""
    dark, flat = seen.brightness < _DARK, seen.contrast < _FLAT
    faults = _sentence(
        (dark, f"it is dark (nineteen in twenty pixels below {seen.brightness:.0%} of white)"),
        (
            flat and not dark,
            f"it is nearly of one colour (contrast {seen.contrast:.1%}): covered or dazzled",
        ),
        (
            seen.blur > _BLURRED and not dark and not flat,
            f"it is blurred ({seen.blur:.2f}, sharp ones have 0.2 to 0.4)",
        ),
        (
            still > _STILL_SHARE and duration_ms >= _STILL_FOR_MS,
            f"it is frozen ({still:.0%} of the frames are the one before once more)",
        ),
    )
    values = {
        "brightness": seen.brightness,
        "contrast": seen.contrast,
        "blur": seen.blur,
        "still_share": still,
    }
    return _unusual(
        "picture_visible",
        faults and f"Look at the picture: {faults}. Few detections mean nothing then; see to the camera.",
        "The picture is bright, sharp and moves.",
        values,
    )


def expected_device(summary: DetectionSummary) -> Finding:
    """A machine with a GPU has used it."""
    return _unusual(
        "expected_device",
        summary.cpu_fallback
        and f"Analysed on the CPU: {summary.cpu_fallback}. Results are the same, later; "
        "CAPSTONE_REQUIRE_GPU=true refuses this.",
        f"Analysed on {summary.device}, as expected.",
        {"device": summary.device, "seconds": summary.seconds},
    )


def tracks_lasting(found: DetectionFacts) -> Finding:
    """Most tracks last: the detector does not flicker, and the tracker does not lose people."""
    lasting = f"{found.short} of {found.tracks} tracks last less than {SHORT_MS / 1000:.0f} s"
    flickers = found.tracks >= _TRACKS_TO_JUDGE and found.short > _SHORT_SHARE * found.tracks
    return _unusual(
        "tracks_lasting",
        flickers
        and f"{lasting}: the detector flickers or the tracker loses people, and events come in pieces. "
        "Sample more often (CAPSTONE_SAMPLE_FPS), or raise CAPSTONE_MIN_SCORE.",
        f"{lasting}.",
        {"tracks": found.tracks, "short_tracks": found.short},
    )


def events_stored(stored: Sequence[Mapping[str, Any]], derived: Sequence[Event]) -> Finding:
    """What consumers read is what was derived.

    Args:
        stored: rows of `events`.
    """
    in_store = {row["event_id"]: row for row in stored}
    wanted = {event.event_id: event for event in derived}
    fields = ("track_id", "label", "start_ms", "end_ms", "detections")
    wrong = {
        "are missing": wanted.keys() - in_store.keys(),
        "were never derived": in_store.keys() - wanted.keys(),
        "differ": {
            name
            for name in wanted.keys() & in_store.keys()
            if any(in_store[name][each] != getattr(wanted[name], each) for each in fields)
        },
    }
    differences = _sentence(
        *((names, f"{len(names)} {what} ({some(sorted(names))})") for what, names in wrong.items())
    )
    return _integrity(
        "events_stored",
        differences and f"of {len(derived)} derived events in the database {differences}",
        f"{len(derived)} events were derived and are in the database.",
        sum(map(len, wrong.values())),
    )


def events_apart(stored: Sequence[Mapping[str, Any]]) -> Finding:
    """No two events of one track overlap.

    Args:
        stored: rows of `events`.
    """
    ordered = sorted(stored, key=lambda row: (row["label"], row["track_id"], row["start_ms"]))
    overlapping = [
        f"track {later['track_id']} at {later['start_ms'] / 1000:.1f} s"
        for earlier, later in pairwise(ordered)
        if (earlier["label"], earlier["track_id"]) == (later["label"], later["track_id"])
        and later["start_ms"] <= earlier["end_ms"]
    ]
    count = len(overlapping)
    wrong = _sentence((count, f"events of one track overlap {count} times ({some(overlapping)})"))
    return _integrity("events_apart", wrong, "No two events of one track overlap.", count)


def usual_detection_rate(this: AnalysisFigures, history: Sequence[AnalysisFigures]) -> Finding:
    """As many detections a minute as this camera's videos usually have."""

    def rate(figures: AnalysisFigures) -> float:
        return 60_000 * figures.detections / max(figures.duration_ms or 0, 1)

    return _usual(
        "usual_detection_rate",
        rate(this),
        [rate(each) for each in history if each.duration_ms],
        # Rates differ by factors: twice as many people is as far as half as many.
        scale=math.log1p,
        least=math.log(_RATE_FACTOR),
        unit="detections a minute",
        advice="Look whether the camera was turned, covered or the scene is another one",
    )


def usual_confidence(this: AnalysisFigures, history: Sequence[AnalysisFigures]) -> Finding:
    """The model is as sure of what it sees as it usually is with this camera.

    Of the same model only: two models' scores cannot be compared.
    """
    if this.mean_score is None:
        return _unusual("usual_confidence", None, "No events, hence no confidence to compare.")
    return _usual(
        "usual_confidence",
        this.mean_score,
        [
            each.mean_score
            for each in history
            if each.mean_score is not None and each.model_sha256 == this.model_sha256
        ],
        scale=float,
        least=_CONFIDENCE_STEP,
        unit="mean confidence",
        advice="Look at light, focus and angle of the camera; a model trained elsewhere may see less here",
    )


def expected_latency(latency_s: float, *, limit_s: float, first: bool) -> Finding:
    """The events were there soon after the upload.

    Args:
        limit_s: how long it may take.
        first: this is the upload's first analysis; a later one is as late as its request.
    """
    if not first:
        reason = "The upload was analysed before: that it is analysed again is not late."
        return _unusual("expected_latency", None, reason)
    reason = f"Events were there {latency_s:,.0f} s after the upload; {limit_s:,.0f} s are expected at most"
    return _unusual(
        "expected_latency",
        latency_s > limit_s
        and f"{reason}. See what it waited for: the queue, a machine, or a failure before "
        "(`capstone logs VIDEO`).",
        f"{reason}.",
        {"latency_s": latency_s, "limit_s": limit_s},
    )


def _integrity(check: str, wrong: str, fine: str, count: int) -> Finding:
    reason = fine
    if wrong:
        wrong = wrong[0].upper() + wrong[1:]
        reason = f"{wrong}. Do not trust these results: analyse the video again with `force`."
    return Finding(check, not wrong, Severity.ERROR, reason, {"wrong": count})


def _unusual(check: str, fault: str | bool | None, fine: str, values: Values | None = None) -> Finding:
    """A warning with its fault, or a passed check where there is none."""
    return Finding(check, not fault, Severity.WARN, str(fault) if fault else fine, values or {})


def _usual(
    check: str,
    value: float,
    history: Sequence[float],
    *,
    scale: Callable[[float], float],
    least: float,
    unit: str,
    advice: str,
) -> Finding:
    """Whether a value is no outlier of a history; `least`: what counts as different at all, to scale."""
    if len(history) < HISTORY_FLOOR:
        reason = (
            f"{value:.2f} {unit}. Nothing to compare it to yet: this camera has {len(history)} comparable "
            f"videos, {HISTORY_FLOOR} are needed."
        )
        return _unusual(check, None, reason, {"value": value, "videos": len(history)})
    middle = statistics.median(history)
    deviation = statistics.median(abs(scale(each) - scale(middle)) for each in history)
    outlier = abs(scale(value) - scale(middle)) > max(_OUTLIER * _TO_SIGMA * deviation, least)
    reason = f"{value:.2f} {unit}; this camera's last {len(history)} comparable videos have {middle:.2f}"
    return _unusual(
        check,
        outlier and f"{reason}. {advice}.",
        f"{reason}: nothing unusual.",
        {"value": value, "median": middle, "videos": len(history)},
    )


def _sentence(*faults: tuple[object, str]) -> str:
    """Those faults that are there, as a part of a sentence; empty without any."""
    return "; ".join(fault for there, fault in faults if there)


def _stem(model: str) -> str:
    return model.removesuffix(".pt")


def some(names: Sequence[str], *, most: int = 5) -> str:
    """A list in a sentence: the first few show what kind they are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
