"""What the asset checks say of a video's results: facts in, a verdict with its sentence out. Pure.

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

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capstone_dagster.analysis import DetectionSummary, Event, Visibility, still_share
from capstone_dagster.storage.analysis_statistics import AnalysisFigures


class Severity(StrEnum):
    """How bad it is that a check failed."""

    ERROR = "ERROR"
    WARN = "WARN"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check says.

    Attributes:
        told: the reason, whole sentences; also where it passed.
        values: the numbers it was judged by.
    """

    check: str
    passed: bool
    severity: Severity
    told: str
    values: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What `frames.parquet` says of itself.

    Attributes:
        rows: decoded frames.
        in_order: they are numbered from 0 without a gap, and no timestamp runs backwards.
        missing: frames that lack in gaps between timestamps, by the usual spacing.
        analyzed, detections: their counts.
        last_pts_ms: of the last frame; 0 without any.
        still: the share of frames that do not differ from the one before, 0–1.
    """

    rows: int
    in_order: bool
    missing: int
    analyzed: int
    detections: int
    last_pts_ms: int
    still: float

    @classmethod
    def of(cls, frames: pa.Table) -> FrameFacts:
        """From the table."""
        index, pts_ms = _column(frames, "frame_index"), _column(frames, "pts_ms")
        spacings = np.diff(pts_ms)
        usual = float(np.median(spacings)) if len(spacings) else 0.0
        gaps = spacings[spacings > _GAP * usual] if usual > 0 else spacings[:0]
        return cls(
            rows=len(index),
            in_order=bool((index == np.arange(len(index))).all() and (spacings >= 0).all()),
            missing=int((np.round(gaps / usual) - 1).sum()) if len(gaps) else 0,
            analyzed=int(_column(frames, "analyzed").sum()),
            detections=int(_column(frames, "detections").sum(dtype=np.int64)),
            last_pts_ms=int(pts_ms[-1]) if len(pts_ms) else 0,
            still=still_share(frames),
        )


@dataclass(frozen=True, slots=True)
class DetectionFacts:
    """What `detections.parquet` says of itself.

    Attributes:
        rows: detections.
        outside: boxes that are empty, or not within the frame.
        out_of_range: scores that are not between the least one kept and 1.
        tracks: tracks that were made.
        short: of these, those that last less than a second.
    """

    rows: int
    outside: int
    out_of_range: int
    tracks: int
    short: int

    @classmethod
    def of(cls, detections: pa.Table, *, width: int, height: int, min_score: float) -> DetectionFacts:
        """From the table; `width` and `height` of the frames in pixels."""
        x1, y1, x2, y2 = (_column(detections, name) for name in ("x1", "y1", "x2", "y2"))
        inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
        scores = _column(detections, "score")
        # Stored as float32, in which hardly any decimal is exact.
        in_range = (scores >= np.float32(min_score) - 1e-6) & (scores <= 1 + 1e-6)
        tracked = detections.filter(pc.is_valid(detections["track_id"]))
        spans = tracked.group_by("track_id").aggregate([("pts_ms", "min"), ("pts_ms", "max")])
        lasting = _column(spans, "pts_ms_max") - _column(spans, "pts_ms_min")
        return cls(
            rows=detections.num_rows,
            outside=int((~inside).sum()),
            out_of_range=int((~in_range).sum()),
            tracks=spans.num_rows,
            short=int((lasting < _SHORT_MS).sum()),
        )


# A spacing so many times the usual one is a gap, in which frames lack; less is jitter.
_GAP = 1.5
# Recorders drop a frame now and then; one in twenty is no longer now and then.
_MISSING_SHARE = 0.05
# Who walks through a picture is there for seconds. What lasts less is a glimpse at the edge, or a detector
# that flickers: a few of them are in every video, half of all tracks is a defect.
_SHORT_MS = 1000
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
# A camera's history says nothing before it has so many videos: of fewer, the median deviation is itself off
# by more than a quarter (its relative standard error is 1.16 / √n where values are normally distributed).
HISTORY_FLOOR = 20
# Iglewicz and Hoaglin, How to detect and handle outliers (1993): values whose modified z-score is above 3.5
# are outliers. 1.4826 makes the median deviation comparable to a standard deviation.
_OUTLIER = 3.5
_TO_SIGMA = 1.4826
# However alike a camera's videos have been: no less than a threefold rate, or 0.1 of confidence, is unusual.
_RATE_FACTOR = 3.0
_CONFIDENCE_STEP = 0.1
# Repeated in a sentence, the first few tell what kind they are.
_NAMED = 5


def frames_complete(frames: FrameFacts, summary: DetectionSummary) -> Verdict:
    """All frames that were decoded are there, and the timestamps ask for no others."""
    wrong = []
    if frames.rows != summary.frames_decoded:
        wrong.append(f"{summary.frames_decoded} frames were decoded and {frames.rows} are stored")
    if frames.analyzed != summary.frames_analyzed:
        wrong.append(f"{summary.frames_analyzed} were analysed and {frames.analyzed} are marked so")
    if frames.detections != summary.detections:
        wrong.append(f"they count {frames.detections} detections and there are {summary.detections}")
    if not frames.in_order:
        wrong.append("they are not numbered one by one, or their timestamps run backwards")
    if frames.last_pts_ms > summary.duration_ms:
        wrong.append(f"the last is shown at {frames.last_pts_ms} ms of a video of {summary.duration_ms} ms")
    expected = frames.rows + frames.missing
    values = {"frames": frames.rows, "frames_expected": expected}
    if wrong:
        return Verdict(
            "frames_complete",
            False,
            Severity.ERROR,
            f"The frames contradict each other: {'; '.join(wrong)}. The stored files are damaged or of two "
            "passes: analyse the video again with `force`.",
            values,
        )
    doubts = []
    if summary.truncated:
        doubts.append("the file ends before its stated end, or in an error")
    if summary.decode_errors:
        doubts.append(f"{summary.decode_errors} parts of it could not be decoded")
    if summary.corrupt_frames:
        doubts.append(f"{summary.corrupt_frames} of its pictures are damaged")
    if summary.size_changes:
        doubts.append(f"their size changes {summary.size_changes} times")
    if expected and frames.missing / expected > _MISSING_SHARE:
        doubts.append(
            f"its timestamps leave room for {expected} frames: {frames.missing} lack "
            f"({frames.missing / expected:.0%}), or its rate varies"
        )
    if doubts:
        return Verdict(
            "frames_complete",
            False,
            Severity.WARN,
            f"{frames.rows} frames were analysed, but {'; '.join(doubts)}. What was to be seen there may "
            "be lost; look at the recorder and the transfer.",
            values,
        )
    return Verdict("frames_complete", True, Severity.ERROR, f"All {frames.rows} frames are there.", values)


def boxes_inside_frame(found: DetectionFacts, summary: DetectionSummary) -> Verdict:
    """Each detection is stored, with a box that lies in the frame."""
    wrong = []
    if found.rows != summary.detections:
        wrong.append(f"{summary.detections} detections were made and {found.rows} are stored")
    if found.outside:
        wrong.append(
            f"{found.outside} boxes are empty or outside the frame of {summary.width} × "
            f"{summary.height} pixels"
        )
    return _integrity("boxes_inside_frame", wrong, f"{found.rows} boxes, all in the frame.", found.outside)


def scores_in_range(found: DetectionFacts, min_score: float) -> Verdict:
    """Each score is a probability that the settings let through."""
    wrong = [f"{found.out_of_range} scores are not between {min_score} and 1"] if found.out_of_range else []
    told = f"All {found.rows} scores lie between {min_score} and 1."
    return _integrity("scores_in_range", wrong, told, found.out_of_range)


def configured_model(summary: DetectionSummary, *, name: str, sha256: str | None, requested: bool) -> Verdict:
    """The model is the one that is configured, or that the request named.

    Names alone prove nothing: where they differ and the file is not at hand, it is a warning.

    Args:
        name: of the model that was to be used.
        sha256: of its file, where that is known without fetching it.
        requested: the request named it.
    """
    used, whose = summary.model, "that the request named" if requested else "that is configured"
    values = {"model": used, "model_sha256": summary.model_sha256, "expected": name}
    same = sha256 == summary.model_sha256 if sha256 is not None else _stem(used) == _stem(name)
    severity = Severity.WARN if sha256 is None else Severity.ERROR
    if same:
        told = f"Analysed with {used}, the model {whose}."
        return Verdict("configured_model", True, severity, told, values)
    told = (
        f"The model {whose} is {name}{f' ({sha256[:12]}…)' if sha256 else ''}, but the video was analysed "
        f"with {used} ({summary.model_sha256[:12]}…). Analyse it again: materialise `detections` of this "
        "partition."
    )
    return Verdict("configured_model", False, severity, told, values)


def picture_visible(seen: Visibility, still: float, duration_ms: int) -> Verdict:
    """There is something to be seen: no black, covered, blurred or frozen picture."""
    faults = []
    if seen.brightness < _DARK:
        faults.append(f"it is dark (nineteen in twenty pixels below {seen.brightness:.0%} of white)")
    elif seen.contrast < _FLAT:
        faults.append(f"it is nearly of one colour (contrast {seen.contrast:.1%}): covered or dazzled")
    elif seen.blur > _BLURRED:
        faults.append(f"it is blurred ({seen.blur:.2f}, sharp ones have 0.2 to 0.4)")
    if still > _STILL_SHARE and duration_ms >= _STILL_FOR_MS:
        faults.append(f"it is frozen ({still:.0%} of the frames are the one before once more)")
    values = {
        "brightness": seen.brightness,
        "contrast": seen.contrast,
        "blur": seen.blur,
        "still_share": still,
    }
    if faults:
        told = (
            f"Look at the picture: {'; '.join(faults)}. Few detections mean nothing then; see to the camera."
        )
        return Verdict("picture_visible", False, Severity.WARN, told, values)
    return Verdict("picture_visible", True, Severity.WARN, "The picture is bright, sharp and moves.", values)


def expected_device(summary: DetectionSummary) -> Verdict:
    """A machine with a GPU has used it."""
    values: dict[str, int | float | str] = {"device": summary.device, "seconds": summary.seconds}
    if summary.cpu_fallback:
        told = (
            f"Analysed on the CPU: {summary.cpu_fallback}. Results are the same, later; "
            "CAPSTONE_REQUIRE_GPU=true refuses this."
        )
        return Verdict("expected_device", False, Severity.WARN, told, values)
    told = f"Analysed on {summary.device}, as expected."
    return Verdict("expected_device", True, Severity.WARN, told, values)


def tracks_lasting(found: DetectionFacts) -> Verdict:
    """Most tracks last: the detector does not flicker, and the tracker does not lose people."""
    values = {"tracks": found.tracks, "short_tracks": found.short}
    share = found.short / found.tracks if found.tracks else 0.0
    told = f"{found.short} of {found.tracks} tracks last less than {_SHORT_MS / 1000:.0f} s"
    if found.tracks >= _TRACKS_TO_JUDGE and share > _SHORT_SHARE:
        told += (
            ": the detector flickers or the tracker loses people, and events come in pieces. Sample more "
            "often (CAPSTONE_SAMPLE_FPS), or raise CAPSTONE_MIN_SCORE."
        )
        return Verdict("tracks_lasting", False, Severity.WARN, told, values)
    return Verdict("tracks_lasting", True, Severity.WARN, f"{told}.", values)


def events_stored(stored: Sequence[Mapping[str, Any]], derived: Sequence[Event]) -> Verdict:
    """What consumers read is what was derived.

    Args:
        stored: rows of `events`.
    """
    in_store = {row["event_id"]: row for row in stored}
    wanted = {event.event_id: event for event in derived}
    fields = ("track_id", "label", "start_ms", "end_ms", "detections")
    wrong = {
        "lack": sorted(wanted.keys() - in_store.keys()),
        "were never derived": sorted(in_store.keys() - wanted.keys()),
        "differ": sorted(
            name
            for name in wanted.keys() & in_store.keys()
            if any(in_store[name][each] != getattr(wanted[name], each) for each in fields)
        ),
    }
    sentences = [f"{len(names)} {what} ({_some(names)})" for what, names in wrong.items() if names]
    told = f"{len(derived)} events were derived and are in the database."
    return _integrity(
        "events_stored",
        sentences and [f"of {len(derived)} derived events in the database {'; '.join(sentences)}"],
        told,
        sum(map(len, wrong.values())),
    )


def events_apart(stored: Sequence[Mapping[str, Any]]) -> Verdict:
    """Nobody is there twice: no two events of one track overlap.

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
    wrong = (
        [f"events of one track overlap {len(overlapping)} times ({_some(overlapping)})"]
        if overlapping
        else []
    )
    return _integrity("events_apart", wrong, "No two events of one track overlap.", len(overlapping))


def usual_detection_rate(this: AnalysisFigures, history: Sequence[AnalysisFigures]) -> Verdict:
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


def usual_confidence(this: AnalysisFigures, history: Sequence[AnalysisFigures]) -> Verdict:
    """The model is as sure of what it sees as it usually is with this camera.

    Of the same model only: two models' scores cannot be compared.
    """
    if this.mean_score is None:
        told = "No events, hence no confidence to compare."
        return Verdict("usual_confidence", True, Severity.WARN, told)
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


def expected_latency(latency_s: float, *, limit_s: float, first: bool) -> Verdict:
    """The events were there soon after the upload.

    Args:
        limit_s: how long it may take.
        first: this is the upload's first analysis; a later one is as late as somebody asked for it.
    """
    values = {"latency_s": latency_s, "limit_s": limit_s}
    if not first:
        told = "The upload was analysed before: that it is analysed again is not late."
        return Verdict("expected_latency", True, Severity.WARN, told)
    told = f"Events were there {latency_s:,.0f} s after the upload; {limit_s:,.0f} s are expected at most"
    if latency_s > limit_s:
        told += ". See what it waited for: the queue, a machine, or a failure before (`capstone logs VIDEO`)."
        return Verdict("expected_latency", False, Severity.WARN, told, values)
    return Verdict("expected_latency", True, Severity.WARN, f"{told}.", values)


def _integrity(check: str, wrong: Sequence[str], told: str, count: int) -> Verdict:
    if wrong:
        sentence = "; ".join(wrong)
        told = (
            f"{sentence[0].upper()}{sentence[1:]}. Do not trust these results: "
            "analyse the video again with `force`."
        )
    return Verdict(check, not wrong, Severity.ERROR, told, {"wrong": count})


def _usual(
    check: str,
    value: float,
    history: Sequence[float],
    *,
    scale: Callable[[float], float],
    least: float,
    unit: str,
    advice: str,
) -> Verdict:
    """Whether a value is no outlier of a history; `least`: what counts as different at all, to scale."""
    if len(history) < HISTORY_FLOOR:
        told = (
            f"{value:.2f} {unit}. Nothing to compare it to yet: this camera has {len(history)} comparable "
            f"videos, {HISTORY_FLOOR} are needed."
        )
        return Verdict(check, True, Severity.WARN, told, {"value": value, "videos": len(history)})
    middle = statistics.median(history)
    deviation = statistics.median(abs(scale(each) - scale(middle)) for each in history)
    distance = abs(scale(value) - scale(middle))
    values = {"value": value, "median": middle, "videos": len(history)}
    told = f"{value:.2f} {unit}; this camera's last {len(history)} comparable videos have {middle:.2f}"
    if distance > max(_OUTLIER * _TO_SIGMA * deviation, least):
        return Verdict(check, False, Severity.WARN, f"{told}. {advice}.", values)
    return Verdict(check, True, Severity.WARN, f"{told}: nothing unusual.", values)


def _stem(model: str) -> str:
    return model.removesuffix(".pt")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return table[name].to_numpy()
