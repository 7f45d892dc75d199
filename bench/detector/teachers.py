"""The teachers: two published detectors whose answers become the labels that the embedded detector learns.

Persons come from YOLO11n (COCO, exported to OpenVINO), faces from YuNet. What a teacher is unsure about is
kept apart as doubtful: it is neither taught as somebody nor as nobody, and does not count in evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

PERSON, FACE = 0, 1
CLASS_NAMES = ("person", "face")

PERSON_MODEL = "yolo11n_int8_openvino_model"
FACE_MODEL = "face_detection_yunet_2026may.onnx"

# Looked at on contact sheets of the training scenes: below the first number the teacher is mostly wrong,
# above the second nearly never.
PERSON_DOUBTFUL, PERSON_SURE = 0.2, 0.45
FACE_DOUBTFUL, FACE_SURE = 0.4, 0.7

FACE_IN_PERSON = 0.45
"""A face's centre lies in this upper part of some person's box, or it is a picture on a shirt or a wall."""

YUNET_LONG_SIDES = (640, 1280)
"""Pictures are shown to YuNet at both sizes: it misses small faces in the one, very large in the other."""


@dataclass(frozen=True)
class Labels:
    """What is in a picture: class ids (n,) int and boxes (n, 4) float32 xyxy pixels, sure and doubtful."""

    classes: np.ndarray
    boxes: np.ndarray
    doubtful_classes: np.ndarray
    doubtful_boxes: np.ndarray

    @staticmethod
    def of(sure: list[tuple[int, Any]], doubtful: list[tuple[int, Any]]) -> Labels:
        """From two lists of (class id, xyxy)."""

        def split(items: list[tuple[int, Any]]) -> tuple[np.ndarray, np.ndarray]:
            classes = np.array([c for c, _ in items], dtype=np.int64)
            return classes, np.array([b for _, b in items], dtype=np.float32).reshape(-1, 4)

        return Labels(*split(sure), *split(doubtful))


class Teachers:
    """Both teachers, loaded once. `directory` holds `PERSON_MODEL` and `FACE_MODEL`."""

    def __init__(self, directory: Path) -> None:
        from ultralytics import YOLO  # heavy: only who asks the teachers pays for it

        for name in (PERSON_MODEL, FACE_MODEL):
            if not (directory / name).exists():
                raise SystemExit(f"teacher {name} not found in {directory}; pass its folder with --teachers")
        self._persons = YOLO(str(directory / PERSON_MODEL), task="detect")
        self._faces = cv2.FaceDetectorYN.create(str(directory / FACE_MODEL), "", (640, 360), FACE_DOUBTFUL)

    def label(self, picture: np.ndarray) -> Labels:
        """What both see in a picture, (h, w, 3) uint8 BGR."""
        sure: list[tuple[int, Any]] = []
        doubtful: list[tuple[int, Any]] = []
        found = self._persons.predict(
            picture, conf=PERSON_DOUBTFUL, iou=0.6, imgsz=640, classes=[0], verbose=False, device="cpu"
        )[0].boxes
        persons = found.xyxy.cpu().numpy()
        for box, score in zip(persons, found.conf.cpu().numpy(), strict=True):
            (sure if score >= PERSON_SURE else doubtful).append((PERSON, box))
        for box, score in zip(*self._detect_faces(picture), strict=True):
            if _on_a_person(box, persons):
                (sure if score >= FACE_SURE else doubtful).append((FACE, box))
        return Labels.of(sure, doubtful)

    def _detect_faces(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """YuNet's boxes (n, 4) xyxy pixels and scores (n,), the sizes in `YUNET_LONG_SIDES` merged."""
        height, width = picture.shape[:2]
        boxes: list[np.ndarray] = []
        scores: list[float] = []
        for side in YUNET_LONG_SIDES:
            scale = side / max(height, width)
            resized = cv2.resize(picture, (round(width * scale), round(height * scale)))
            self._faces.setInputSize((resized.shape[1], resized.shape[0]))
            _, rows = self._faces.detect(resized)
            for row in rows if rows is not None else ():
                x, y, w, h = row[:4] / scale
                boxes.append(np.array([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)]))
                scores.append(float(row[14]))
        keep = cv2.dnn.NMSBoxes([[b[0], b[1], b[2] - b[0], b[3] - b[1]] for b in boxes], scores, 0.0, 0.4)
        kept = [int(i) for i in np.array(keep).reshape(-1)]
        return np.array([boxes[i] for i in kept]).reshape(-1, 4), np.array([scores[i] for i in kept])


def _on_a_person(face: np.ndarray, persons: np.ndarray) -> bool:
    cx, cy = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
    return any(
        p[0] <= cx <= p[2] and p[1] <= cy <= p[1] + FACE_IN_PERSON * max(p[3] - p[1], 1.2 * (p[2] - p[0]))
        for p in persons
    )


@dataclass(frozen=True)
class Moment:
    """One frame of a training video: file name, time in seconds, and its pixels (h, w, 3) uint8 BGR."""

    video: str
    time_s: float
    picture: np.ndarray


def read_moments(video: Path, every_s: float) -> Iterator[Moment]:
    """Frames of a video or an animated picture, one every `every_s` seconds of presentation time."""
    due = 0.0
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            now = frame.time or 0.0
            if now >= due:
                due = now + every_s - 1e-6
                yield Moment(video.name, now, frame.to_ndarray(format="bgr24"))


def duration_s(video: Path) -> float:
    """Presentation time of the last frame in seconds (headers of animated pictures do not say it)."""
    last = 0.0
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            last = frame.time or last
    return last
