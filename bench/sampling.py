"""What sampling and the motion gate cost in events and save in time: one curve for one video and model.

    .venv/bin/python bench/sampling.py VIDEO --model M [--rounds 3] [--record]

The every-frame pass is the reference: its own events are what the others are to find, so this measures what
is lost by looking less often, not how true the events are. Without VIDEO a minute is made in which somebody
is there for a fifth of the time. A round is one pass of each kind, in an order that turns from round to
round; times are compared within a round, and medians over the rounds are told; processor time beside them,
because others may be at work on the machine. Loading the model counts for nobody.

**At the time of a detection of one event, another of the same label agrees with it** if its box there, taken
between its own detections and held for half of its sampling interval before the first and after the last, has
an IoU of at least 0.5. A reference event is *recalled* if at half or more of its detections some found event
agrees with it; a found event is *right* if at half or more of its detections some reference event agrees. A
found event is *of* the reference event that agrees with most of its detections. Then

- event recall = recalled reference events / all; also of those alone that last two seconds or longer;
- event precision = right found events / all found ones;
- boundary error = how far the first start and the last end of the found events that are of a recalled event
  are from its own, where there are any: median, and below what 90 % are;
- pieces = how many found events are of a recalled event, on average of those that have any.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
from bench.detector.clip import STREET, load_photograph
from bench.report import machine, record, table
from capstone_dagster.analysis import (
    AnalysisSettings,
    Detector,
    Event,
    EventRules,
    analyze_video,
    build_events,
    load_detector,
    read_detections,
)

SAMPLE_FPS = (10.0, 5.0, 3.0, 2.0, 1.5, 1.0)
PACKAGES = ("av", "numpy", "opencv-python-headless", "openvino", "torch", "ultralytics-opencv-headless")
_LONG_MS = 2000
_SAME_IOU = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Presence:
    """One event with its detections: `times` (n,) ms, `boxes` (n, 4) xyxy pixels; half an interval in ms."""

    label: str
    times: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]
    half_ms: float

    @property
    def span(self) -> tuple[float, float]:
        return float(self.times[0]) - self.half_ms, float(self.times[-1]) + self.half_ms

    @property
    def seconds(self) -> float:
        return (self.span[1] - self.span[0]) / 1000


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the events of one pass compare with the reference's; None where there is nothing to compare."""

    events: int
    recall: float | None
    recall_long: float | None
    precision: float | None
    boundary_median_s: float | None
    boundary_p90_s: float | None
    pieces: float | None


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass found and took."""

    seconds: float
    processor_seconds: float
    frames_decoded: int
    frames_analyzed: int
    presences: tuple[Presence, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, required=True, help="a .pt file or *_openvino_model directory")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample-fps", type=float, nargs="*", default=SAMPLE_FPS)
    parser.add_argument("--record", action="store_true", help="put the table into bench/RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        video = options.video or make_mostly_empty(Path(folder) / "mostly-empty.mp4")
        base = AnalysisSettings(labels=("person",), sample_fps=0)
        detector = load_detector(options.model, base, device=options.device)
        kinds = {
            name(fps, gate): replace(base, sample_fps=fps, motion_gate=gate)
            for gate in (False, True)
            for fps in (0.0, *options.sample_fps)
        }
        passes: dict[str, list[Pass]] = {kind: [] for kind in kinds}
        for turn in range(options.rounds):
            order = list(kinds)[turn % len(kinds) :] + list(kinds)[: turn % len(kinds)]
            for kind in order:
                passes[kind].append(one_pass(video, Path(folder) / "out", detector, kinds[kind]))
                print(f"round {turn + 1}: {kind}: {passes[kind][-1].seconds:.2f} s", file=sys.stderr)
    report(options, video, detector, passes)


def name(sample_fps: float, motion_gate: bool) -> str:
    return ("every frame" if sample_fps == 0 else f"{sample_fps:g} fps") + (" + gate" if motion_gate else "")


def one_pass(video: Path, out: Path, detector: Detector, settings: AnalysisSettings) -> Pass:
    """One whole pass, pictures and tables included."""
    began, processor_began = time.perf_counter(), time.process_time()
    summary = analyze_video(video, out, detector=detector, settings=settings)
    seconds, processor_seconds = time.perf_counter() - began, time.process_time() - processor_began
    rows = read_detections(out / "detections.parquet")
    events = build_events(
        rows,
        summary.coverage,
        analysis_id="bench",
        rules=EventRules(),
    )
    columns = {key: np.array(rows[key].to_pylist()) for key in ("track_id", "label", "pts_ms")}
    boxes = np.array([rows[key].to_pylist() for key in ("x1", "y1", "x2", "y2")], dtype=np.float64).T
    half_ms = summary.sample_interval_ms / 2
    presences = tuple(presence_of(event, columns, boxes, half_ms) for event in events)
    return Pass(seconds, processor_seconds, summary.frames_decoded, summary.frames_analyzed, presences)


def presence_of(
    event: Event, columns: dict[str, npt.NDArray[Any]], boxes: npt.NDArray[np.float64], half_ms: float
) -> Presence:
    chosen = (
        (columns["track_id"] == event.track_id)
        & (columns["label"] == event.label)
        & (columns["pts_ms"] >= event.start_ms)
        & (columns["pts_ms"] <= event.end_ms)
    )
    times = columns["pts_ms"][chosen].astype(np.float64)
    order = np.argsort(times, kind="stable")
    return Presence(event.label, times[order], boxes[chosen][order], half_ms)


def compare(reference: Sequence[Presence], found: Sequence[Presence]) -> Agreement:
    """See the definitions above."""
    recalled = [agreed(e, found) >= 0.5 for e in reference]
    owners = [owner(c, reference) for c in found]
    pieces = {
        index: [c for c, of in zip(found, owners, strict=True) if of == index]
        for index, known in enumerate(recalled)
        if known and index in owners
    }
    errors = [
        abs(theirs - ours) / 1000
        for index, those in pieces.items()
        for theirs, ours in (
            (reference[index].times[0], min(c.times[0] for c in those)),
            (reference[index].times[-1], max(c.times[-1] for c in those)),
        )
    ]
    return Agreement(
        events=len(found),
        recall=mean(recalled),
        recall_long=mean(
            [known for e, known in zip(reference, recalled, strict=True) if e.seconds * 1000 >= _LONG_MS]
        ),
        precision=mean([agreed(c, reference) >= 0.5 for c in found]),
        boundary_median_s=float(np.median(errors)) if errors else None,
        boundary_p90_s=float(np.quantile(errors, 0.9)) if errors else None,
        pieces=mean([len(those) for those in pieces.values()]),
    )


def agreed(one: Presence, others: Sequence[Presence]) -> float:
    """The share of its detections with which some other event agrees."""
    agreeing = [agreement(one, other) for other in others]
    return float(np.mean(np.any(agreeing, axis=0))) if agreeing else 0.0


def owner(one: Presence, others: Sequence[Presence]) -> int | None:
    """Which of the others agrees with most of its detections."""
    counts = [int(agreement(one, other).sum()) for other in others]
    return int(np.argmax(counts)) if any(counts) else None


def agreement(one: Presence, other: Presence) -> npt.NDArray[np.bool_]:
    """At which of the first's detections the second agrees with it."""
    start, end = other.span
    there = (one.times >= start) & (one.times <= end) & (one.label == other.label)
    boxes = np.stack([np.interp(one.times, other.times, side) for side in other.boxes.T], axis=1)
    overlap = np.clip(
        np.minimum(one.boxes[:, 2:], boxes[:, 2:]) - np.maximum(one.boxes[:, :2], boxes[:, :2]), 0, None
    ).prod(axis=1)
    areas = sum((corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in (one.boxes, boxes))
    return there & (overlap >= _SAME_IOU * (areas - overlap))


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def report(
    options: argparse.Namespace, video: Path, detector: Detector, passes: dict[str, list[Pass]]
) -> None:
    every = passes[name(0, False)]
    reference = every[0].presences
    results = {}
    for kind, those in passes.items():
        ratios = [one.seconds / mine.seconds for one, mine in zip(every, those, strict=True)]
        processor_ratios = [
            one.processor_seconds / mine.processor_seconds for one, mine in zip(every, those, strict=True)
        ]
        results[kind] = {
            "frames_analyzed": those[0].frames_analyzed,
            "seconds": statistics.median(mine.seconds for mine in those),
            "speed_up": statistics.median(ratios),
            "speed_up_range": [min(ratios), max(ratios)],
            "processor_seconds": statistics.median(mine.processor_seconds for mine in those),
            "processor_time_saved": statistics.median(processor_ratios),
            **asdict(compare(reference, those[0].presences)),
        }
    head = ("pass", "frames", "s", "speed-up", "by processor time", "events", "recall", "recall ≥ 2 s",
            "precision", "boundary s (median, p90)", "pieces")  # fmt: skip
    rows = [
        (
            kind,
            result["frames_analyzed"],
            f"{result['seconds']:.2f}",
            f"{result['speed_up']:.1f}×",
            f"{result['processor_time_saved']:.1f}×",
            result["events"],
            *(shown(result[key]) for key in ("recall", "recall_long", "precision")),
            f"{shown(result['boundary_median_s'])}, {shown(result['boundary_p90_s'])}",
            shown(result["pieces"]),
        )
        for kind, result in results.items()
    ]
    long = sum(e.seconds * 1000 >= _LONG_MS for e in reference)
    body = (
        f"{every[0].frames_decoded} frames; {detector.name} ({detector.backend}, {detector.device}); "
        f"{len(every)} rounds; the reference has {len(reference)} events, {long} of them of 2 s or more.\n\n"
        f"{table(head, rows)}"
    )
    print(f"{machine(PACKAGES)}\n\n{body}\n")
    if options.record:
        record(
            f"Sampling and motion gate: {options.video.name if options.video else 'a mostly empty minute'}",
            "python -m bench.sampling " + shlex.join(shown_arguments(options)),
            body,
            PACKAGES,
        )
    print(json.dumps({"video": video.name, "model": detector.name, "passes": results}))


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def shown_arguments(options: argparse.Namespace) -> list[str]:
    """The command without this machine's folders."""
    video = [options.video.name] if options.video else []
    return [*video, "--model", options.model.name, "--rounds", str(options.rounds)]


def make_mostly_empty(path: Path, *, seconds: int = 60, fps: int = 25) -> Path:
    """A still place with a camera's noise and slow light; somebody crosses it, later somebody stops in it."""
    width, height = 640, 360
    random = np.random.default_rng(0)
    coarse = random.uniform(90, 170, (6, 10, 3))
    fine = random.uniform(-12, 12, (68, 120, 3))
    place = sum(
        cv2.resize(part.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        for part in (coarse, fine)
    )
    noise = random.normal(0, 3, (11, height, width, 1)).astype(np.float32)
    x1, y1, x2, y2 = (round(side) for side in STREET.subjects[2].box)
    somebody = cv2.resize(load_photograph(STREET)[y1:y2, x1:x2], None, fx=0.4, fy=0.4).astype(np.float32)
    tall, wide = somebody.shape[:2]

    def position(second: float) -> float | None:
        if 10 <= second < 16:  # from edge to edge
            return (second - 10) / 6 * (width + wide) - wide
        if 30 <= second < 36:  # in, a stop of two seconds, and out again
            return -wide + 200 * min(1.0, (second - 30) / 2, (36 - second) / 2)
        return None

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "26"}
        for index in range(seconds * fps):
            picture = place.copy()
            x = position(index / fps)
            if x is not None:
                left, right = max(0, round(x)), min(width, round(x) + wide)
                picture[130 : 130 + tall, left:right] = somebody[:, left - round(x) : right - round(x)]
            picture *= np.float32(1 + 0.1 * np.sin(index / fps / 10))  # clouds
            picture += noise[random.integers(len(noise))]
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
