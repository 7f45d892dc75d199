"""How true tracks and events are to the footage: ours beside plain ByteTrack and BoT-SORT, same detections.

    .venv/bin/python bench/accuracy.py VIDEO TRUTH --model M [--fps 0 5 2] [--record]
    .venv/bin/python bench/accuracy.py --worlds 8 [--first-seed 0] [--fps 10 5 2] [--record]

VIDEO is detected once, at every frame; at fewer frames a second the frames that sampling takes are selected
from that. TRUTH is MOTChallenge's text format (frame from 1, id, x, y, width, height, considered or not);
where its boxes are in pixels of another size than the video's, `--truth-size` says which. An fps of 0 means
every frame.

The plain trackers are Ultralytics' with its own defaults, fed with what `yolo track` would feed them; what
they return is scored, weak detections included. Ours is what an analysis keeps: detections of at least
`min_score`, tracks after stitching. Events of all three are built by the same rules. What the scores mean
stands in `bench/tracking_scores.py`; milliseconds are of tracking alone, for each analysed frame.

`--worlds` makes that many synthetic scenes (`bench/worlds.py`) instead, 30 frames a second, and gives means.
On these, and not on footage with truth, the constants of `analysis/tracking/` (`motion_tracker`, `stitching`
and `video_tracker`) were chosen, one after the other, by the sum of IDF1, half of MOTA and 0.7 of the events'
F1, with and without looks, at 10, 5 and 2 frames a second, seeds 100 to 105. To compare values, change one
and run `--worlds 6 --first-seed 100`; other seeds tell whether what was gained is more than luck.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
from bench import worlds
from bench.report import machine, record, table
from bench.tracking_scores import Boxes, event_scores, track_scores
from capstone_dagster.analysis import (
    DETECTIONS_SCHEMA,
    AnalysisSettings,
    Coverage,
    Detections,
    EventRules,
    build_events,
    frames,
    load_detector,
)
from capstone_dagster.analysis.footage.video import Image
from capstone_dagster.analysis.tracking.ultralytics_trackers import TrackerInput, new_tracker
from capstone_dagster.analysis.tracking.video_tracker import UNTRACKED, VideoTracker

PACKAGES = ("numpy", "openvino", "torch", "trackeval", "ultralytics-opencv-headless")
LABELS = ("person",)
SETTINGS = AnalysisSettings(labels=LABELS, sample_fps=0)

Ids = list[npt.NDArray[np.int64]]
Scores = dict[str, float]


@dataclass(frozen=True, eq=False)
class Footage:
    """Analysed frames in order, with truth."""

    times_ms: Sequence[int]
    pictures: Sequence[Image]
    detections: Sequence[Detections]
    truth: Sequence[Boxes]

    def sampled(self, fps: float) -> Footage:
        """The first frame at or after each tick, as sampling takes them; all of them for 0."""
        places = list(range(len(self.times_ms)))
        if fps:
            last = -1
            places = []
            for place, time_ms in enumerate(self.times_ms):
                tick = int((Fraction(time_ms + 1, 1000)) * Fraction(str(fps)))
                if tick > last:
                    places.append(place)
                    last = tick
        return Footage(*([column[place] for place in places] for column in vars(self).values()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("truth", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, help="a .pt file or *_openvino_model directory")
    parser.add_argument("--truth-size", type=int, nargs=2, default=(768, 576), help="default: 768 576")
    parser.add_argument("--worlds", type=int, help="so many synthetic scenes instead of a video")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fps", type=float, nargs="*", default=(0.0, 5.0, 2.0), help="default: 0 5 2")
    parser.add_argument("--record", action="store_true", help="put the table into bench/RESULTS.md")
    options = parser.parse_args()
    if options.worlds:
        seeds = range(options.first_seed, options.first_seed + options.worlds)
        footages: list[Callable[[], Footage]] = [lambda seed=seed: synthetic(seed) for seed in seeds]
        name = f"Tracks and events: {options.worlds} synthetic scenes"
    elif options.video and options.truth and options.model:
        footage = detected(options.video, options.truth, options.model, tuple(options.truth_size))
        footages = [lambda: footage]
        name = f"Tracks and events: {options.video.name}, {options.model.name}"
    else:
        parser.error("either VIDEO, TRUTH and --model, or --worlds")
    results = compare(footages, options.fps)
    shown = table(HEAD, markdown_rows(results))
    print(machine(PACKAGES), shown, json.dumps(results), sep="\n")
    if options.record:
        record(name, shlex.join(["python", "-m", "bench.accuracy", *sys.argv[1:]]), shown, PACKAGES)


def compare(
    footages: Sequence[Callable[[], Footage]], sample_fps: Sequence[float]
) -> dict[str, dict[str, Scores]]:
    """{"5 fps": {"ours": {"mota": ...}, "ByteTrack": ...}, ...}: means over the footages."""
    collected: dict[str, dict[str, list[Scores]]] = {}
    for make in footages:
        whole = make()
        if not collected:
            for tracker in TRACKERS.values():  # importing counts for nobody
                tracker(whole.sampled(1.0))
        for fps in sample_fps:
            footage = whole.sampled(fps)
            for name, tracker in TRACKERS.items():
                began = time.perf_counter()
                ids, kept = tracker(footage)
                milliseconds = (time.perf_counter() - began) * 1000 / len(footage.times_ms)
                scores = {**scored(footage, ids, kept), "ms": milliseconds}
                kind = f"{fps:g} fps" if fps else "every frame"
                collected.setdefault(kind, {}).setdefault(name, []).append(scores)
                print(f"{kind}, {name}: {milliseconds:.2f} ms a frame", file=sys.stderr)
    return {
        kind: {
            name: {key: float(np.nanmean([scores[key] for scores in all_scores])) for key in all_scores[0]}
            for name, all_scores in by_name.items()
        }
        for kind, by_name in collected.items()
    }


# Column, key of the scores, format.
_COLUMNS = (
    ("MOTA", "mota", ".3f"),
    ("IDF1", "idf1", ".3f"),
    ("HOTA", "hota", ".3f"),
    ("switches", "switches", ".4g"),
    ("ids", "ids", ".4g"),
    ("people", "people", ".4g"),
    ("event precision", "event_precision", ".3f"),
    ("event recall", "event_recall", ".3f"),
    ("events a visit", "fragmentation", ".2f"),
    ("boundary error, median (s)", "boundary_median_s", ".2f"),
    ("p90 (s)", "boundary_p90_s", ".2f"),
    ("ms a frame", "ms", ".2f"),
)
HEAD = ("frames", "tracker", *(column for column, _, _ in _COLUMNS))


def markdown_rows(results: dict[str, dict[str, Scores]]) -> list[list[str]]:
    """The cells under `HEAD`, from what `compare` returns."""
    return [
        [kind, name, *(format(scores[key], style) for _, key, style in _COLUMNS)]
        for kind, by_name in results.items()
        for name, scores in by_name.items()
    ]


def ours(footage: Footage) -> tuple[Ids, list[npt.NDArray[np.bool_]]]:
    """The visit of each detection, and which detections an analysis keeps."""
    tracker = VideoTracker(SETTINGS, LABELS)
    tracklets = [
        tracker.update(detections, picture, time_ms)
        for detections, picture, time_ms in zip(
            footage.detections, footage.pictures, footage.times_ms, strict=True
        )
    ]
    visits = np.append(tracker.finish(), UNTRACKED)  # number 0 - 1, which no tracklet has, finds the last
    ids = [visits[np.maximum(numbers, 0) - 1].astype(np.int64) for numbers in tracklets]
    return ids, [detections.scores >= SETTINGS.min_score for detections in footage.detections]


def plain(
    kind: Literal["bytetrack", "botsort"],
) -> Callable[[Footage], tuple[Ids, list[npt.NDArray[np.bool_]]]]:
    """Ultralytics' tracker of that name as `yolo track` runs it."""

    def track(footage: Footage) -> tuple[Ids, list[npt.NDArray[np.bool_]]]:
        tracker = new_tracker(kind, _defaults(kind))
        ids = []
        for detections, picture in zip(footage.detections, footage.pictures, strict=True):
            numbers = np.full(len(detections), UNTRACKED, dtype=np.int64)
            for row in tracker.update(TrackerInput(detections), picture):
                numbers[int(row[7])] = int(row[4])
            ids.append(numbers)
        return ids, [np.ones(len(detections), dtype=np.bool_) for detections in footage.detections]

    return track


TRACKERS: dict[str, Callable[[Footage], tuple[Ids, list[npt.NDArray[np.bool_]]]]] = {
    "ours": ours,
    "ByteTrack": plain("bytetrack"),
    "BoT-SORT": plain("botsort"),
}


def scored(footage: Footage, ids: Ids, kept: Sequence[npt.NDArray[np.bool_]]) -> Scores:
    """Scores of tracks, and of the events built from them."""
    found, rows = [], []
    for index, (detections, numbers) in enumerate(zip(footage.detections, ids, strict=True)):
        tracked = detections.select(kept[index] & (numbers != UNTRACKED))
        numbers = numbers[kept[index] & (numbers != UNTRACKED)]
        found.append(Boxes(numbers, tracked.boxes.astype(np.float64)))
        rows += [
            (index, footage.times_ms[index], number, LABELS[0], score, *box)
            for number, score, box in zip(
                numbers.tolist(), tracked.scores.tolist(), tracked.boxes.tolist(), strict=True
            )
        ]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(DETECTIONS_SCHEMA.names)}
    height, width = footage.pictures[0].shape[:2]
    interval_ms = float(np.median(np.diff(footage.times_ms)))
    events = build_events(
        pa.table(columns, schema=DETECTIONS_SCHEMA),
        Coverage(width, height, footage.times_ms[0], footage.times_ms[-1], interval_ms, interval_ms),
        analysis_id="accuracy",
        rules=EventRules(),
    )
    return {
        **track_scores(footage.truth, found),
        **event_scores(footage.truth, found, footage.times_ms, events),
    }


def synthetic(seed: int) -> Footage:
    world = worlds.make_world(seed)
    count = len(world.moments)
    return Footage(
        [round(index * 1000 / worlds.RATE) for index in range(count)],
        [world.picture(index) for index in range(count)],
        world.detections,
        [Boxes(moment.ids, moment.boxes) for moment in world.moments],
    )


def detected(video: Path, truth: Path, model: Path, truth_size: tuple[int, int]) -> Footage:
    """Every frame of a video with what the model finds in it. Holds all of them: for clips of minutes."""
    detector = load_detector(model, SETTINGS)
    decoded = list(frames(video, sample_fps=0))
    pictures = [frame.image for frame in decoded if frame.image is not None]
    found: list[Detections] = []
    for start in range(0, len(pictures), 8):
        found += detector.detect(pictures[start : start + 8])
    height, width = pictures[0].shape[:2]
    return Footage(
        [frame.pts_ms for frame in decoded],
        pictures,
        [detections.clipped(width, height) for detections in found],
        _read_truth(truth, len(decoded), (width / truth_size[0], height / truth_size[1])),
    )


def _read_truth(path: Path, count: int, scale: tuple[float, float]) -> list[Boxes]:
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    rows = rows[rows[:, 6] == 1]
    boxes = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1) * np.array([*scale, *scale])
    truth = []
    for index in range(count):
        here = rows[:, 0] == index + 1
        truth.append(Boxes(rows[here, 1].astype(np.int64), boxes[here]))
    return truth


def _defaults(kind: str) -> Any:
    from ultralytics.utils import YAML, IterableSimpleNamespace
    from ultralytics.utils.checks import check_yaml

    return IterableSimpleNamespace(**YAML.load(check_yaml(f"{kind}.yaml")))


if __name__ == "__main__":
    main()
