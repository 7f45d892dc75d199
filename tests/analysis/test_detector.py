"""A model is loaded only if it is the right one, and what is wrong with it is said in one sentence."""

from __future__ import annotations

import os
import pickle
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from capstone_dagster.analysis import (
    AnalysisError,
    AnalysisSettings,
    Detections,
    InvalidAnalysisSettings,
    ModelUnavailable,
    load_detector,
    model_sha256,
)
from capstone_dagster.analysis.detection.checkpoint import import_ultralytics
from capstone_dagster.analysis.detection.letterbox import Letterbox

SMALL = AnalysisSettings(image_size=64)


@pytest.fixture(scope="module")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint with random weights: it finds nothing sensible, but it loads and runs."""
    path = tmp_path_factory.mktemp("models") / "untrained.pt"
    yolo = import_ultralytics().YOLO("yolo11n.yaml")
    names = {number: f"thing {number}" for number in range(80)}
    yolo.model.names = names | {0: "person", 1: "bicycle", 2: "car", 16: "dog"}
    yolo.save(str(path))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_checkpoint_becomes_a_detector(untrained_model: Path, cache: Path) -> None:
    sha256 = model_sha256(untrained_model)
    detector = load_detector(
        untrained_model, SMALL, device="cpu", expected_sha256=f" {sha256.upper()}\n", cache=cache
    )
    assert (detector.name, detector.sha256) == ("untrained", sha256)
    assert (detector.device, detector.cpu_fallback) == ("cpu", None)
    assert detector.backend in ("openvino-bf16", "openvino-f32")
    assert detector.workers >= 1
    assert detector.labels == ("person",)
    assert detector.missing_labels == ("face",)
    assert detector.load_seconds > 0
    pictures = [
        np.zeros((90, 160, 3), np.uint8),
        np.zeros((160, 90, 3), np.uint8),
        np.zeros((1, 1, 3), np.uint8),
    ]
    found = detector.detect(pictures)
    assert [type(each) for each in found] == [Detections] * 3
    assert {each.names for each in found} == {("person",)}
    assert detector.detect([]) == []


def test_labels_keep_the_order_of_the_model(untrained_model: Path, cache: Path) -> None:
    settings = AnalysisSettings(labels=("dog", "person", "car"), image_size=64)
    assert load_detector(untrained_model, settings, device="cpu", cache=cache).labels == (
        "person",
        "car",
        "dog",
    )


def test_a_model_without_any_label_of_interest_is_refused_with_what_it_knows(
    untrained_model: Path, cache: Path
) -> None:
    with pytest.raises(InvalidAnalysisSettings, match=r"'unicorn'.*knows: person, bicycle"):
        load_detector(untrained_model, AnalysisSettings(labels=("unicorn",)), device="cpu", cache=cache)


def test_another_model_than_the_pinned_one_is_not_even_opened(tmp_path: Path) -> None:
    model = tmp_path / "garbage.pt"
    model.write_bytes(b"garbage")  # opening it would fail with another message
    with pytest.raises(ModelUnavailable, match=r"SHA-256 0{64}, but has [0-9a-f]{64}; it was not loaded"):
        load_detector(model, SMALL, expected_sha256="0" * 64)


class _Intruder:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_code_inside_a_model_file_does_not_run(tmp_path: Path, cache: Path) -> None:
    trace = tmp_path / "it-ran"
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"model": _Intruder(str(trace))}, protocol=2))
    with pytest.raises(ModelUnavailable, match=r"model\.pt does not load"):
        load_detector(tmp_path / "model.pt", SMALL, device="cpu", cache=cache)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("nothing.pt", None),
        ("empty.pt", b""),
        ("model.bin", b"what is this"),
        ("plain_directory", {"model.xml": b"<net/>"}),
        ("no_xml_openvino_model", {"readme.txt": b"?"}),
        ("broken_openvino_model", {"m.xml": b"<net/>", "m.bin": b"", "metadata.yaml": b"names: {0: person}"}),
    ],
)
def test_a_model_that_does_not_load_is_unavailable(
    tmp_path: Path, cache: Path, name: str, files: bytes | dict[str, bytes] | None
) -> None:
    path = tmp_path / name
    if isinstance(files, bytes):
        path.write_bytes(files)
    elif files is not None:
        path.mkdir()
        for file, content in files.items():
            (path / file).write_bytes(content)
    with pytest.raises(ModelUnavailable) as refusal:
        load_detector(path, SMALL, device="cpu", cache=cache)
    assert name in str(refusal.value)
    assert refusal.value.failure_class == "model-unavailable"


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cuda:x", ""])
def test_a_device_that_is_not_there_is_refused(untrained_model: Path, device: str) -> None:
    with pytest.raises(InvalidAnalysisSettings, match="device") as refusal:
        load_detector(untrained_model, SMALL, device=device)
    assert device in str(refusal.value)


def test_ultralytics_keeps_to_itself(untrained_model: Path) -> None:
    import_ultralytics()
    from ultralytics.utils import ONLINE, SETTINGS, checks
    from ultralytics.utils.events import events

    assert not events.enabled
    assert not checks.AUTOINSTALL
    assert not SETTINGS["sync"]
    assert not ONLINE  # what asks for newer versions and sends reports looks here


def test_every_error_has_the_class_of_the_contract() -> None:
    known = {each.__name__: each.failure_class for each in AnalysisError.__subclasses__()}
    assert known == {
        "UndecodableVideo": "undecodable-video",
        "DecoderLost": "worker-lost",
        "ModelUnavailable": "model-unavailable",
        "GpuOutOfMemory": "gpu-out-of-memory",
        "GpuError": "gpu-error",
        "InvalidAnalysisSettings": "configuration",
    }


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 5, Fraction(5, 2), Fraction(1, 2)])
def test_pictures_are_scaled_like_bilinearly_at_every_ratio(ratio: Fraction | int) -> None:
    height, width = round(36 * ratio), round(64 * ratio)
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    fitted = Letterbox.rectangular(height, width, size=(64, 64), stride=32).fit(picture)
    assert np.array_equal(fitted[14:50], cv2.resize(picture, (64, 36), interpolation=cv2.INTER_LINEAR))
