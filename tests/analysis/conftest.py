"""A detector that needs no model, and pictures with the boxes that are right."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from capstone_dagster.analysis import Detections, frames
from capstone_dagster.analysis.detection.checkpoint import import_ultralytics
from capstone_dagster.analysis.footage.video import Image
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.testing.scenes import COLOURS, MakeClip, Square, SquareDetector
from tests.analysis.reference import WEIGHTS, ultralytics_boxes

__all__ = ["COLOURS", "MakeClip", "Square", "SquareDetector"]  # tests name them from here


def decoders(parent: int) -> list[int]:
    """The processes that decode for a process and still run, by Linux's account."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            command = (process / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent and fields[0] != "Z" and b"decoder_process" in command:
            found.append(int(process.name))
    return found


@pytest.fixture
def detector() -> SquareDetector:
    return SquareDetector()


@pytest.fixture(scope="session")
def pictures() -> list[Image]:
    """Photographs in many shapes, and frames of the demo clip between them."""
    assets = Path(import_ultralytics().__file__).parent / "assets"
    street, touchline = (cv2.imread(str(assets / name)) for name in ("bus.jpg", "zidane.jpg"))
    shapes = [
        street,
        touchline,
        cv2.resize(street, (480, 640)),  # no scaling in the model's direction
        cv2.resize(touchline, (640, 360)),
        cv2.resize(touchline, (200, 113)),  # scaled up
        cv2.resize(street, (2160, 2880), interpolation=cv2.INTER_CUBIC),
        np.ascontiguousarray(street[:, ::-1]),
        np.ascontiguousarray(street[350:900, :]),
        touchline[100:601, 99:1200],  # a view, of odd sides
        np.zeros((1, 1, 3), np.uint8),
        np.full((40, 700, 3), 90, np.uint8),
    ]
    moments = [frame.image for frame in frames(DEMO_CLIP, sample_fps=1.0) if frame.image is not None][:12]
    assert len(moments) >= 8
    return [picture for pair in zip(shapes, [*moments, *shapes], strict=False) for picture in pair]


@pytest.fixture(scope="session")
def expected(pictures: list[Image]) -> list[Detections]:
    """The boxes on `pictures` that are right."""
    return ultralytics_boxes(WEIGHTS, pictures)
