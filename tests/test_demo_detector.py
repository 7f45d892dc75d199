"""The embedded detector: the file is the one that was measured; it finds the clip's people and faces."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.detector import clip
from capstone_dagster.local.detector import INFERENCE_SIZE, MODEL_PATH, MODEL_SHA256

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "0")

Found = dict[str, np.ndarray]

SOMEBODY_MS = (2800, 3600, 4400, 5200, 6400, 7200, 12000, 12800, 13600, 14800)
"""Moments between the camera's journeys; the truth says who is there."""

NOBODY_MS = (0, 800, 9200, 9600, 10000, 10320, 17000, 17560)


@pytest.fixture(scope="module")
def model() -> Any:
    from ultralytics import YOLO

    return YOLO(str(MODEL_PATH), task="detect")


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    return {p.file: clip.load_photograph(p) for p in (clip.STREET, clip.TOUCHLINE)}


def detect(model: Any, photographs: dict[str, np.ndarray], pts_ms: int) -> Found:
    """Boxes (n, 4) xyxy pixels by label of one moment of the clip, at the checkpoint's own picture size."""
    view = clip.camera_at(pts_ms)
    frame = clip.render_view(photographs[view.photograph.file], view)
    result = model.predict(frame, conf=0.25, verbose=False, device="cpu")[0]
    labels = np.array([result.names[int(c)] for c in result.boxes.cls])
    boxes = result.boxes.xyxy.numpy()
    return {label: boxes[labels == label] for label in ("person", "face")}


def overlap(box: clip.Box, others: np.ndarray) -> float:
    """The best intersection over union of `box` with one of `others` (n, 4)."""
    b = np.array(box)
    shared = np.prod(
        np.maximum(np.minimum(b[2:], others[:, 2:]) - np.maximum(b[:2], others[:, :2]), 0), axis=1
    )
    union = np.prod(b[2:] - b[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    return float((shared / union).max(initial=0.0))


def test_the_file_is_small_and_is_the_one_that_was_measured() -> None:
    data = MODEL_PATH.read_bytes()
    assert len(data) <= 6 * 1024 * 1024
    assert hashlib.sha256(data).hexdigest() == MODEL_SHA256
    assert MODEL_SHA256 in MODEL_PATH.with_name("MODEL_CARD.md").read_text()


def test_the_file_names_no_place_of_the_machine_that_trained_it() -> None:
    text = MODEL_PATH.read_bytes().decode("latin-1")
    assert not re.search(r"/(work|home|root|tmp|usr|mnt)/|[A-Z]:\\\\", text)


def test_it_knows_persons_and_faces_and_its_own_picture_size(model: Any) -> None:
    assert model.names == {0: "person", 1: "face"}
    assert model.overrides["imgsz"] == INFERENCE_SIZE


def test_it_finds_the_people_and_faces_of_the_demo_clip(
    model: Any, photographs: dict[str, np.ndarray]
) -> None:
    for label, least in (("person", 0.85), ("face", 0.9)):
        seen = []
        for now in SOMEBODY_MS:
            found = detect(model, photographs, now)
            truth = [v for v in clip.visible_at(now) if v.present and v.subject.label == label]
            seen += [(now, v.subject.name, overlap(v.box, found[label]) >= 0.5) for v in truth]
        missed = [(now, name) for now, name, hit in seen if not hit]
        assert len(seen) >= 15
        assert 1 - len(missed) / len(seen) >= least, f"{label}s not found: {missed}"


def test_it_sees_nearly_nobody_where_nobody_is(model: Any, photographs: dict[str, np.ndarray]) -> None:
    phantoms = []
    for now in NOBODY_MS:
        assert clip.visible_at(now) == ()
        phantoms += [(now, label) for label, boxes in detect(model, photographs, now).items() for _ in boxes]
    assert len(phantoms) <= 1, phantoms


def test_naming_the_model_does_not_load_torch() -> None:
    code = "import sys; import capstone_dagster.local.detector; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    assert done.returncode == 0
