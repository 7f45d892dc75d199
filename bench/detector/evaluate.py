"""Measure the embedded detector: precision, recall and average precision for persons and faces.

    python -m bench.detector.evaluate --data VIDEOS --teachers TEACHERS --eval EVAL

Four comparisons: with the teachers on the part of the training videos that was never trained on, with the
teachers on the demo clip, with the hand-checked truth of the demo clip, and with the ground truth of
PETS09-S2L1 (`vtest.mp4`, `vtest_gt.txt` in `--eval`): people seen from elsewhere, never trained or tuned on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before ultralytics is imported: it reads them once. Measuring must not install, report or fetch anything.
os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "0")

import numpy as np

from bench.detector import clip
from bench.detector.teachers import (
    CLASS_NAMES,
    PERSON,
    Labels,
    Teachers,
    duration_s,
    read_moments,
)
from bench.detector.train import held_out_from_s, training_videos
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.detector import INFERENCE_SIZE, MODEL_PATH

CONFIDENCE = 0.25
"""Score from which a detection counts for precision and recall: Ultralytics' default, also the pipeline's."""

OVERLAP = 0.5
"""Intersection over union from which a detection has found the box."""

VTEST_SCALE = 0.625
"""The ground truth is in 768×576 pixels, the video was re-encoded at 480×360."""


@dataclass(frozen=True)
class Reference:
    """A picture (h, w, 3) uint8 BGR and what is in it; doubtful boxes count neither for nor against."""

    picture: np.ndarray
    labels: Labels


@dataclass(frozen=True)
class Score:
    """One class in one comparison; ratios are None where nothing was to be found or nothing was found."""

    comparison: str
    label: str
    pictures: int
    boxes: int
    precision: float | None
    recall: float | None
    ap50: float | None


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL_PATH, help="weights to measure")
    parser.add_argument(
        "--size", type=int, default=INFERENCE_SIZE, help="longer side given to the model, pixels"
    )
    parser.add_argument("--data", type=Path, help="folder of the training videos")
    parser.add_argument("--teachers", type=Path, help="folder of the teacher models")
    parser.add_argument("--eval", type=Path, help="folder with vtest.mp4 and vtest_gt.txt")
    parser.add_argument("--json", type=Path, help="write the scores to this file too")
    args = parser.parse_args(arguments)

    from ultralytics import YOLO  # heavy: after the arguments are known to be right

    model = YOLO(str(args.model), task="detect")
    scores: list[Score] = []

    def compare(name: str, references: Iterable[Reference], labels: tuple[str, ...] = CLASS_NAMES) -> None:
        scores.extend(_score(name, references, labels, model, args.size))

    if args.teachers:
        teachers = Teachers(args.teachers)
        if args.data:
            compare("unseen frames, teachers", _held_out(args.data, teachers))
        compare("demo clip, teachers", _clip_by_teachers(DEMO_CLIP, teachers))
    compare("demo clip, truth", _clip_by_truth(DEMO_CLIP))
    if args.eval:
        compare("PETS09-S2L1, truth", _pets(args.eval), ("person",))

    print(table(scores))
    if args.json:
        digest = hashlib.sha256(args.model.read_bytes()).hexdigest()
        result = {"model_sha256": digest, "size": args.size, "scores": [asdict(score) for score in scores]}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def table(scores: list[Score]) -> str:
    """The scores as a Markdown table."""

    def ratio(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.3f}"

    rows = [
        "| compared with | class | pictures | boxes | precision | recall | mAP50 |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for s in scores:
        figures = " | ".join(ratio(value) for value in (s.precision, s.recall, s.ap50))
        rows.append(f"| {s.comparison} | {s.label} | {s.pictures} | {s.boxes} | {figures} |")
    return "\n".join(rows)


# --- what to compare with -----------------------------------------------------------------------------


def _held_out(data: Path, teachers: Teachers) -> Iterator[Reference]:
    """About 20 frames of the last fifth of each training video."""
    for video in training_videos(data):
        start = held_out_from_s(video)
        every = max((duration_s(video) - start) / 20, 0.04)
        for moment in read_moments(video, every):
            if moment.time_s >= start:
                yield Reference(moment.picture, teachers.label(moment.picture))


def _clip_by_teachers(demo: Path, teachers: Teachers) -> Iterator[Reference]:
    """Five frames a second of the demo clip, as the pipeline samples it."""
    for moment in read_moments(demo, 0.2):
        yield Reference(moment.picture, teachers.label(moment.picture))


def _clip_by_truth(demo: Path) -> Iterator[Reference]:
    """The same frames; who is in the frame, but not enough to count as present, is doubtful."""
    for moment in read_moments(demo, 0.2):
        sure: list[tuple[int, Any]] = []
        doubtful: list[tuple[int, Any]] = []
        for seen in clip.visible_at(moment.time_s * 1000):
            entry = (CLASS_NAMES.index(seen.subject.label), np.array(seen.box))
            (sure if seen.present else doubtful).append(entry)
        yield Reference(moment.picture, Labels.of(sure, doubtful))


def _pets(directory: Path) -> Iterator[Reference]:
    """Every frame of the video with its ground truth (MOT format: frame, id, x, y, w, h, conf, ...)."""
    rows = np.loadtxt(directory / "vtest_gt.txt", delimiter=",")
    for index, moment in enumerate(read_moments(directory / "vtest.mp4", 0.0), start=1):
        mine = rows[rows[:, 0] == index]
        boxes = np.concatenate([mine[:, 2:4], mine[:, 2:4] + mine[:, 4:6]], axis=1) * VTEST_SCALE
        counted = mine[:, 6] == 1
        sure = [(PERSON, box) for box in boxes[counted]]
        yield Reference(moment.picture, Labels.of(sure, [(PERSON, box) for box in boxes[~counted]]))


# --- comparing ----------------------------------------------------------------------------------------


def _score(
    name: str, references: Iterable[Reference], labels: tuple[str, ...], model: Any, size: int
) -> list[Score]:
    pictures = 0
    boxes = dict.fromkeys(labels, 0)
    answers: dict[str, list[tuple[float, bool]]] = {label: [] for label in labels}
    for reference in references:
        pictures += 1
        found = model.predict(reference.picture, conf=0.001, imgsz=size, verbose=False, device="cpu")[0].boxes
        found_classes, scores = found.cls.cpu().numpy().astype(int), found.conf.cpu().numpy()
        found_boxes = found.xyxy.cpu().numpy()
        for label in labels:
            kind = CLASS_NAMES.index(label)
            mine = found_classes == kind
            truth = reference.labels.boxes[reference.labels.classes == kind]
            doubtful = reference.labels.doubtful_boxes[reference.labels.doubtful_classes == kind]
            boxes[label] += len(truth)
            answers[label] += match(found_boxes[mine], scores[mine], truth, doubtful)
    return [
        Score(name, label, pictures, boxes[label], *ratios(answers[label], boxes[label])) for label in labels
    ]


def match(
    found: np.ndarray, scores: np.ndarray, truth: np.ndarray, doubtful: np.ndarray
) -> list[tuple[float, bool]]:
    """(score, right or wrong) of each detection of one class in one picture, best first.

    Boxes are (n, 4) xyxy pixels. Each true box is found once; detections of doubtful boxes are left out.
    """
    overlap, vague = _overlaps(found, truth), _overlaps(found, doubtful)
    free = np.ones(len(truth), dtype=bool)
    answers = []
    for index in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, overlap[index], 0.0)
        if candidates.max(initial=0.0) >= OVERLAP:
            free[int(candidates.argmax())] = False
            answers.append((float(scores[index]), True))
        elif vague[index].max(initial=0.0) < OVERLAP:
            answers.append((float(scores[index]), False))
    return answers


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of (n, 4) with (m, 4) boxes: (n, m)."""
    top = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(bottom - top, 0), axis=2)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    return np.asarray(shared / np.maximum(area_a[:, None] + area_b[None, :] - shared, 1e-9))


def ratios(answers: list[tuple[float, bool]], boxes: int) -> tuple[float | None, float | None, float | None]:
    """Precision and recall at `CONFIDENCE`, and the area under the whole precision-recall curve."""
    if boxes == 0:
        return None, None, None
    ranked = sorted(answers, key=lambda answer: -answer[0])
    right = np.cumsum([correct for _, correct in ranked]) if ranked else np.zeros(0)
    precision = right / np.arange(1, len(ranked) + 1)
    kept = sum(score >= CONFIDENCE for score, _ in ranked)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # at a recall, the best precision from there on
    steps = np.diff(np.concatenate([[0.0], right / boxes]))
    at = (float(precision[kept - 1]), float(right[kept - 1] / boxes)) if kept else (None, 0.0)
    return at[0], at[1], float((envelope * steps).sum())


if __name__ == "__main__":
    main()
