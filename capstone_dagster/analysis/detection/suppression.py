"""From a YOLO model's raw output to the boxes that stand, by Ultralytics' own rules."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from .labels import LabelMap

MAX_DETECTIONS = 300
"""The most objects that a picture may hold: Ultralytics' own limit, more than a grandstand has at 640 px."""

# Ultralytics looks at no more candidates than this.
_MAX_CANDIDATES = 30_000

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]
"""(n, 4) boxes in pixels of the model's input, xyxy; (n,) scores; (n,) label ids; best first."""


def select(output: npt.NDArray[np.float32], labels: LabelMap, *, min_score: float, iou: float) -> Found:
    """What one picture's raw output says of the labels of interest.

    Args:
        output: (4 + classes, n): centre x, centre y, width, height in pixels and a score for each class; or
            (n, 6), from a model that suppresses by itself: x1, y1, x2, y2, score, class.
        min_score: only what scores more.
        iou: of two boxes of one label that overlap by more, the better one stays.
    """
    if output.shape[1] == 6 and output.shape[0] != 4 + labels.class_count:
        return _already_suppressed(output, labels, min_score)
    scores = output[4 : 4 + labels.class_count]
    # Few of the thousands of places hold anything, and most classes are of no interest: look there only.
    interesting = np.flatnonzero(scores[list(labels.class_ids)].max(axis=0) > min_score)
    if interesting.size == 0:
        return _nothing()
    # A place belongs to its best class, also where that one is of no interest: half a dog is no person.
    classes = scores[:, interesting].argmax(axis=0)
    label_ids = labels.label_ids(classes)
    wanted = label_ids >= 0
    places, label_ids = interesting[wanted], label_ids[wanted]
    best = scores[classes[wanted], places]
    if places.size > _MAX_CANDIDATES:
        strongest = np.argsort(-best, kind="stable")[:_MAX_CANDIDATES]
        places, label_ids, best = places[strongest], label_ids[strongest], best[strongest]
    centres, sizes = output[:2, places].T, output[2:4, places].T
    corners = centres - sizes / 2
    if places.size == 0:
        return _nothing()
    kept = np.asarray(
        cv2.dnn.NMSBoxesBatched(
            cast(Any, np.concatenate([corners, sizes], axis=1).astype(np.float64)),
            cast(Any, best.astype(np.float32)),
            cast(Any, label_ids),
            min_score,
            iou,
        ),
        dtype=np.intp,
    ).reshape(-1)[:MAX_DETECTIONS]
    boxes = np.concatenate([corners[kept], corners[kept] + sizes[kept]], axis=1)
    return boxes.astype(np.float32), best[kept].astype(np.float32), label_ids[kept]


def _already_suppressed(output: npt.NDArray[np.float32], labels: LabelMap, min_score: float) -> Found:
    strong = output[output[:, 4] > min_score]
    label_ids = labels.label_ids(strong[:, 5].astype(np.intp))
    kept = np.flatnonzero(label_ids >= 0)[:MAX_DETECTIONS]
    return strong[kept, :4].astype(np.float32), strong[kept, 4].astype(np.float32), label_ids[kept]


def _nothing() -> Found:
    return np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32)
