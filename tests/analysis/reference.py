"""What Ultralytics' own predict finds, and how far others agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capstone_dagster.analysis import AnalysisSettings, Detections
from capstone_dagster.analysis.detection.checkpoint import import_ultralytics
from capstone_dagster.analysis.detection.labels import LabelMap
from capstone_dagster.analysis.footage.video import Image
from capstone_dagster.local import detector as demo_detector

WEIGHTS = Path(demo_detector.__file__).with_name("person_face.pt")


def ultralytics_boxes(
    weights: Path, pictures: Sequence[Image], settings: AnalysisSettings = AnalysisSettings()
) -> list[Detections]:
    """What predict finds, asked for one picture after the other."""
    yolo = import_ultralytics().YOLO(str(weights))
    labels = LabelMap(yolo.names, settings.labels, model="reference")
    options = {"conf": settings.weak_score, "iou": settings.iou, "classes": list(labels.class_ids)}
    if settings.image_size is not None:
        options["imgsz"] = settings.image_size
    found = []
    for picture in pictures:
        boxes = yolo.predict(np.ascontiguousarray(picture), device="cpu", verbose=False, **options)[0].boxes
        classes = boxes.cls.cpu().numpy().astype(np.intp)
        found.append(
            Detections.of(
                boxes.xyxy.cpu().numpy(), boxes.conf.cpu().numpy(), labels.label_ids(classes), labels.labels
            )
        )
    return found


def overlaps(some: Detections, others: Detections) -> Any:
    """(n, m) intersection over union, 0 where the labels differ."""
    corner = np.maximum(some.boxes[:, None, :2], others.boxes[None, :, :2])
    opposite = np.minimum(some.boxes[:, None, 2:], others.boxes[None, :, 2:])
    common = np.clip(opposite - corner, 0, None).prod(axis=2)
    areas = [(each.boxes[:, 2:] - each.boxes[:, :2]).prod(axis=1) for each in (some, others)]
    union = np.maximum(areas[0][:, None] + areas[1][None, :] - common, 1e-9)
    return common / union * (some.label_ids[:, None] == others.label_ids[None, :])


def share_matched(
    ours: Sequence[Detections], theirs: Sequence[Detections], *, score: float = 0.02, least: int = 100
) -> float:
    """Of all boxes of both, those with one of the other's at IoU 0.9 or more, and less than `score` apart."""
    matched = total = 0
    for some, others in zip(ours, theirs, strict=True):
        same = (overlaps(some, others) >= 0.9) & (abs(some.scores[:, None] - others.scores[None, :]) < score)
        matched += int(same.any(axis=1).sum() + same.any(axis=0).sum())
        total += len(some) + len(others)
    assert total >= least, "too few boxes to say anything"
    return matched / total


def offsets(
    ours: Sequence[Detections], theirs: Sequence[Detections], pictures: Sequence[Image]
) -> list[float]:
    """How far the edges of our boxes are from the nearest one of theirs, in pixels of a 640 px wide input."""
    return [
        abs(others.boxes - box).max(axis=1).min() / max(picture.shape) * 640
        for some, others, picture in zip(ours, theirs, pictures, strict=True)
        for box in some.boxes
        if len(others)
    ]
