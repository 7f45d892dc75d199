"""OpenVINO finds what Ultralytics finds, in any shape, from any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
import openvino.opset13 as opset
import pytest

from capstone_dagster.analysis import (
    AnalysisSettings,
    Detections,
    InvalidAnalysisSettings,
    ModelUnavailable,
    load_detector,
)
from capstone_dagster.analysis.footage.video import Image
from tests.analysis.reference import WEIGHTS, share_matched, ultralytics_boxes

FULL = AnalysisSettings(precision="full")


def test_in_full_precision_the_boxes_are_those_of_ultralytics(
    pictures: list[Image], expected: list[Detections], model_cache: Path
) -> None:
    detector = load_detector(WEIGHTS, FULL, device="cpu", cache=model_cache)
    assert detector.backend == "openvino-f32"
    assert share_matched(detector.detect(pictures), expected) >= 0.99


def test_in_16_bits_nearly_all_boxes_stay(
    pictures: list[Image], expected: list[Detections], model_cache: Path
) -> None:
    detector = load_detector(WEIGHTS, AnalysisSettings(), device="cpu", cache=model_cache)
    if detector.backend == "openvino-f32":
        pytest.skip("this processor computes in 32 bits only")
    # bf16 has 8 bits of mantissa: a score moves by some hundredths, and what lies near the threshold of 0.1
    # comes and goes. Those that are kept, above 0.25, stay.
    found = [strong(each) for each in detector.detect(pictures)]
    assert share_matched(found, [strong(each) for each in expected], score=0.08, least=60) >= 0.93


def test_threads_do_not_disturb_each_other(pictures: list[Image], model_cache: Path) -> None:
    detector = load_detector(WEIGHTS, FULL, device="cpu", cache=model_cache)
    alone = detector.detect(pictures)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda picture: detector.detect([picture])[0], pictures))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_a_size_of_ones_own_is_that_of_ultralytics(pictures: list[Image], model_cache: Path) -> None:
    settings = AnalysisSettings(precision="full", image_size=333)  # no multiple of the stride
    detector = load_detector(WEIGHTS, settings, device="cpu", cache=model_cache)
    expected = ultralytics_boxes(WEIGHTS, pictures[:8], settings)
    assert share_matched(detector.detect(pictures[:8]), expected, least=30) >= 0.99


@pytest.mark.parametrize(("device", "require_gpu"), [("cuda:0", False), ("auto", True), ("cpu", True)])
def test_an_export_does_not_run_on_a_gpu(
    test_data: Path, model_cache: Path, device: str, require_gpu: bool
) -> None:
    export = test_data / "models/yolo11n_int8_openvino_model"
    with pytest.raises(InvalidAnalysisSettings, match=r"yolo11n_int8.* is an OpenVINO model"):
        load_detector(export, FULL, device=device, require_gpu=require_gpu, cache=model_cache)


def test_an_export_for_one_shape_gets_every_picture_in_it(
    test_data: Path, pictures: list[Image], model_cache: Path
) -> None:
    export = test_data / "models/yolo11n_int8_openvino_model"
    settings = AnalysisSettings(labels=("person", "bus", "tie", "bicycle"))
    found = load_detector(export, settings, cache=model_cache).detect(pictures)
    assert share_matched(found, ultralytics_boxes(export, pictures, settings), score=0.05, least=60) >= 0.97


@pytest.mark.parametrize(
    ("shape", "understood"),
    [
        ((1, 84, 5040), True),
        ((1, 84, 84), True),
        ((1, 116, 5040), True),  # with masks
        ((1, 300, 6), True),  # suppresses by itself
        ((1, 300, 84), False),  # RT-DETR, whose output would be misread
        ((1, 5, 5040), False),
        ((1, 1000), False),
    ],
)
def test_what_has_another_output_than_yolo_is_refused(
    tmp_path: Path, shape: tuple[int, ...], understood: bool
) -> None:
    export = constant_model(tmp_path / "some_openvino_model", shape)
    settings = AnalysisSettings(labels=("thing 0",))
    if understood:
        found = load_detector(export, settings, cache=tmp_path / "cache").detect(
            [np.zeros((9, 9, 3), np.uint8)]
        )
        assert len(found[0]) == 0
    else:
        with pytest.raises(ModelUnavailable, match=r"some_openvino_model .*none of a YOLO detector"):
            load_detector(export, settings, cache=tmp_path / "cache")


def constant_model(directory: Path, shape: tuple[int, ...]) -> Path:
    """An export for 80 classes whose output is all zeros, in the given shape, whatever it sees."""
    picture = opset.parameter([1, 3, 640, 640], np.float32)
    mean = opset.reduce_mean(picture, np.array([0, 1, 2, 3]), keep_dims=False)
    zeros = opset.multiply(mean, opset.constant(np.zeros(shape, np.float32)))
    directory.mkdir()
    openvino.save_model(openvino.Model([zeros], [picture]), directory / "some.xml")
    names = "".join(f"  {number}: thing {number}\n" for number in range(80))
    (directory / "metadata.yaml").write_text(f"task: detect\nstride: 32\nimgsz: [640, 640]\nnames:\n{names}")
    return directory


def strong(detections: Detections) -> Detections:
    return detections.select(np.flatnonzero(detections.scores >= 0.25))
