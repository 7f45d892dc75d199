"""The boxes of Ultralytics' own predict on the same weights and pictures, whatever batch, thread or shape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from capstone_dagster.analysis import (
    AnalysisSettings,
    Detections,
    GpuError,
    GpuOutOfMemory,
    InvalidAnalysisSettings,
    ModelUnavailable,
)
from capstone_dagster.analysis.detection import suppression, torch_detector, torch_steps
from capstone_dagster.analysis.detection.checkpoint import import_ultralytics
from capstone_dagster.analysis.detection.device import Device
from capstone_dagster.analysis.detection.labels import LabelMap
from capstone_dagster.analysis.detection.letterbox import Letterbox
from capstone_dagster.analysis.detection.torch_detector import TorchDetector
from capstone_dagster.analysis.detection.torch_steps import letterboxed, standing
from capstone_dagster.analysis.footage.video import Image
from tests.analysis.reference import WEIGHTS, offsets, share_matched, ultralytics_boxes

SETTINGS = AnalysisSettings()
CPU = Device("cpu")

# Cells of the fake models' outputs.
PLACES = 60

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")


def detector(
    weights: Path = WEIGHTS, settings: AnalysisSettings = SETTINGS, device: Device = CPU
) -> TorchDetector:
    return TorchDetector(weights, settings, device=device, sha256="0" * 64)


def test_the_boxes_are_those_of_ultralytics(pictures: list[Image], expected: list[Detections]) -> None:
    found = detector().detect(pictures)  # all shapes in one call
    assert share_matched(found, expected) >= 0.99


def test_half_precision_moves_few_boxes(
    pictures: list[Image], expected: list[Detections], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does unless told otherwise, tried on the CPU: other kernels, the same rounding."""
    monkeypatch.setattr(torch_detector, "arithmetic", lambda device, precision: torch.float16)
    half = detector()
    assert half.backend == "torch-f16"
    # A processor without half precision takes its time: a third of the pictures will do.
    pictures, expected = pictures[::3], expected[::3]
    found = half.detect(pictures)
    assert share_matched(found, expected, least=40) >= 0.99
    # Where boxes are decoded in half precision, too, this was measured as 0.14.
    assert np.median(offsets(found, expected, pictures)) < 0.08


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`untrained(architecture)`: a checkpoint of random weights."""

    def make(architecture: str, *, suppresses: bool = False) -> Path:
        torch.manual_seed(7)
        yolo = import_ultralytics().YOLO(f"{architecture}.yaml")
        yolo.model.names = THINGS
        for weights in yolo.model.parameters():  # else both heads of one that has two are alike
            weights.data += 0.02 * torch.randn_like(weights)
        if architecture == "yolo26n":
            yolo.model.end2end = True  # as trained; predict has it suppress all the same while it can
        if suppresses:
            yolo.model.fuse(verbose=False)  # throws away what would need suppression
        path = tmp_path_factory.mktemp("models") / f"{architecture}.pt"
        yolo.save(str(path))
        return path

    return make


THINGS = {number: f"thing {number}" for number in range(80)}

# Random weights are sure of nothing.
UNSURE = AnalysisSettings(labels=tuple(THINGS.values()), image_size=64, min_score=1e-9)


@pytest.mark.parametrize(
    ("architecture", "suppresses"),
    [("yolo11n", False), ("yolov8n", False), ("yolo11n-pose", False), ("yolo26n", False), ("yolo26n", True)],
)
def test_every_kind_of_yolo_is_understood(
    untrained: Callable[..., Path], architecture: str, suppresses: bool
) -> None:
    weights = untrained(architecture, suppresses=suppresses)
    noise = np.random.default_rng(1).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    ours = detector(weights, UNSURE).detect(list(noise))
    theirs = ultralytics_boxes(weights, list(noise), UNSURE)
    assert share_matched(ours, theirs, score=1e-6) >= 0.99


def test_it_says_what_it_is(untrained: Callable[..., Path]) -> None:
    weights = untrained("yolo11n")
    settings = AnalysisSettings(labels=("thing 40", "thing 3", "unicorn"), image_size=64)
    found = TorchDetector(weights, settings, device=Device("cpu", "the driver is too old"), sha256="abc")
    assert (found.name, found.sha256, found.device, found.backend) == ("yolo11n", "abc", "cpu", "torch-f32")
    assert (found.labels, found.missing_labels) == (("thing 3", "thing 40"), ("unicorn",))
    assert (found.cpu_fallback, found.workers, found.batch_size) == ("the driver is too old", 1, 1)
    assert found.load_seconds > 0
    assert found.detect([]) == []
    assert (found.backoffs, found.gpu_state()) == (0, None)


@pytest.fixture
def limit(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[Callable[[int], BaseException | None]], list[int]]]:
    """`limit(failure)`: models fail with what it makes of a batch's size, if anything; returns the sizes."""
    from ultralytics.nn.tasks import BaseModel

    monkeypatch.setitem(torch_detector._BATCH, "cpu", 8)
    hooks = []

    def install(failure: Callable[[int], BaseException | None]) -> list[int]:
        sizes: list[int] = []

        def before(module: object, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, BaseModel):
                sizes.append(len(inputs[0]))
                error = failure(len(inputs[0]))
                if error is not None:
                    raise error

        hooks.append(torch.nn.modules.module.register_module_forward_pre_hook(before))
        return sizes

    yield install
    for hook in hooks:
        hook.remove()


def out_of_memory(size: int) -> BaseException:
    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} GiB")


def test_a_batch_without_room_is_halved(limit: Callable[..., list[int]], pictures: list[Image]) -> None:
    alike = [picture for picture in pictures if picture.shape == (720, 1280, 3)][:7]
    crowded = detector(settings=AnalysisSettings(image_size=320))
    one_by_one = [crowded.detect([picture])[0] for picture in alike]
    sizes = limit(lambda size: out_of_memory(size) if size > 2 else None)
    found = crowded.detect(alike)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert crowded.backoffs == 2
    assert share_matched(found, one_by_one, least=20) >= 0.99


@pytest.mark.parametrize(
    ("failure", "known_as"),
    [
        (out_of_memory, GpuOutOfMemory),
        (lambda size: torch.AcceleratorError("CUDA error: out of memory"), GpuOutOfMemory),
        (lambda size: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), GpuOutOfMemory),
        (lambda size: torch.AcceleratorError("an illegal memory access was encountered"), GpuError),
        (lambda size: RuntimeError("CUDA error: device-side assert triggered"), GpuError),
        (lambda size: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), GpuError),
        (lambda size: RuntimeError("shapes do not match"), RuntimeError),
    ],
)
def test_failures_have_their_class(
    limit: Callable[..., list[int]], failure: Callable[[int], BaseException], known_as: type[Exception]
) -> None:
    small = AnalysisSettings(image_size=64)
    found = detector(settings=small)
    limit(failure)
    with pytest.raises(known_as) as raised:
        found.detect([np.zeros((64, 64, 3), np.uint8)])
    assert type(raised.value) is known_as
    # While loading, what is not the GPU's fault is the model's.
    with pytest.raises(ModelUnavailable if known_as is RuntimeError else known_as, match="person_face"):
        detector(settings=small)


def test_after_a_failure_it_goes_on(limit: Callable[..., list[int]]) -> None:
    found = detector(settings=AnalysisSettings(image_size=64))
    picture = np.zeros((64, 64, 3), np.uint8)
    failures: list[BaseException | None] = [RuntimeError("CUDA error: launch failure"), None]
    limit(lambda size: failures.pop(0))
    with pytest.raises(GpuError, match="person_face failed on 1 pictures"):
        found.detect([picture])
    assert len(found.detect([picture])) == 1


def test_what_is_no_yolo_is_refused(untrained: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "garbage.pt").write_bytes(b"garbage" * 100)
    with pytest.raises(ModelUnavailable, match=r"garbage\.pt does not load"):
        detector(tmp_path / "garbage.pt")
    with pytest.raises(ModelUnavailable, match="yolo11n-cls"):
        detector(untrained("yolo11n-cls"))
    headless = import_ultralytics().YOLO(str(untrained("yolo11n")))
    headless.model.model[-1] = torch.nn.Identity()
    headless.save(str(tmp_path / "headless.pt"))
    with pytest.raises(ModelUnavailable, match="YOLO model was expected, but headless ends in Identity"):
        detector(tmp_path / "headless.pt", UNSURE)
    with pytest.raises(InvalidAnalysisSettings, match="'unicorn'"):
        detector(settings=AnalysisSettings(labels=("unicorn",)))


def test_threads_do_not_disturb_each_other(pictures: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_detector._WORKERS, "cpu", 2)
    assert_threads_agree(detector(settings=AnalysisSettings(image_size=160)), pictures)


def assert_threads_agree(found: TorchDetector, pictures: Sequence[Image]) -> None:
    """Two threads, each with another shape than the other: nothing of one may end up in the other."""
    assert found.workers == 2
    kinds = [[pictures[0]], [pictures[2]]]
    expected = [found.detect(kind)[0] for kind in kinds]
    together = threading.Barrier(2)

    def repeat(kind: int) -> None:
        for _ in range(15):
            together.wait(60)
            each = found.detect(kinds[kind])[0]
            np.testing.assert_allclose(each.boxes, expected[kind].boxes, atol=0.5)

    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(repeat, kind) for kind in (0, 1)]:
            run.result(120)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "shape", [(1080, 1920), (720, 1280), (360, 640), (113, 200), (501, 333), (1, 1), (3, 900), (640, 640)]
)
def test_letterboxing_on_the_device_is_that_of_opencv(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = np.random.default_rng(3)
    images = cv2.GaussianBlur(generator.integers(0, 256, (*shape, 6), dtype=np.uint8), (3, 3), 0)
    batch = np.stack([images.reshape(*shape, 6)[..., :3], images.reshape(*shape, 6)[..., 3:]])
    letterbox = Letterbox.rectangular(*shape, size=(640, 640), stride=32)
    expected = np.stack([letterbox.fit(np.ascontiguousarray(image)) for image in batch])
    ours = letterboxed(torch.from_numpy(batch), letterbox, dtype)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    bgr = (ours.float() * 255).permute(0, 2, 3, 1).flip(3).numpy()
    # OpenCV calculates with 11 bits: one step of 255 is rounding.
    assert abs(bgr - expected).max() < 1.3


@pytest.mark.parametrize("iou", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("candidates", [30_000, 20])
def test_suppression_of_a_batch_is_that_of_its_pictures(
    monkeypatch: pytest.MonkeyPatch, iou: float, candidates: int
) -> None:
    monkeypatch.setattr(torch_steps, "_MAX_CANDIDATES", candidates)
    monkeypatch.setattr(suppression, "_MAX_CANDIDATES", candidates)
    labels = LabelMap(dict(enumerate("abcde")), ("b", "d"), model="fake")
    generator = np.random.default_rng(5)
    output = generator.random((6, 4 + 5 + 3, PLACES), dtype=np.float32)  # 3 of masks
    output[:, :4] = output[:, :4] * 30 + 20
    output[3, 4:9] = 0  # a picture with nothing
    assert_same_as_select(output, labels, suppressed=False, iou=iou)


def test_suppression_by_the_model_itself_is_left_alone() -> None:
    labels = LabelMap(dict(enumerate("abcde")), ("b", "d"), model="fake")
    generator = np.random.default_rng(5)
    output = generator.random((6, PLACES, 6), dtype=np.float32)
    output[..., :4] *= 640
    output[..., 4] = np.sort(output[..., 4])[:, ::-1]
    output[..., 5] = generator.integers(0, 5, (6, PLACES))
    assert_same_as_select(output, labels, suppressed=True, iou=0.5)


def assert_same_as_select(output: Any, labels: LabelMap, *, suppressed: bool, iou: float) -> None:
    ids = torch.from_numpy(labels.label_ids(np.arange(labels.class_count)))
    rows = standing(torch.from_numpy(output), ids, suppressed=suppressed, min_score=0.4, iou=iou).numpy()
    assert len(rows) > 20
    for picture, raw in enumerate(output):
        boxes, scores, label_ids = suppression.select(raw, labels, min_score=0.4, iou=iou)
        ours = rows[rows[:, 0] == picture]
        np.testing.assert_allclose(ours[:, 5], scores)
        np.testing.assert_allclose(ours[:, 1:5], boxes, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(ours[:, 6], label_ids)


@on_gpu
def test_a_gpu_finds_the_boxes_of_ultralytics(pictures: list[Image], expected: list[Detections]) -> None:
    """In 32 bits the same; in half, 98 % of them: less than the CPU's 99, because its kernels differ, too."""
    gpu = Device("cuda:0")
    full = detector(settings=AnalysisSettings(precision="full"), device=gpu)
    half = detector(device=gpu)
    assert (full.backend, half.backend) == ("torch-f32", "torch-f16")
    assert half.batch_size > 1
    state = half.gpu_state()
    assert state is not None
    assert 0 < state.memory_used_mb < state.memory_total_mb
    assert state.utilization_percent is None or 0 <= state.utilization_percent <= 100
    assert share_matched(full.detect(pictures), expected) >= 0.99
    assert share_matched(half.detect(pictures * 2), expected * 2) >= 0.98


@on_gpu
def test_a_gpu_with_little_memory_left_still_finds_everything(pictures: list[Image]) -> None:
    found = detector(device=Device("cuda:0"))
    large = [cv2.resize(picture, (3840, 2160)) for picture in pictures[:12]]
    expected = [found.detect([picture])[0] for picture in large]
    torch.cuda.empty_cache()
    # Room for a few: 4K is 25 MB as bytes, 50 MB in half precision.
    taken = torch.empty(torch.cuda.mem_get_info()[0] - (300 << 20), dtype=torch.uint8, device="cuda:0")
    fresh_shape = [np.ascontiguousarray(picture[:-2]) for picture in large]
    try:
        assert share_matched(found.detect(large), expected) >= 0.99
        assert len(found.detect(fresh_shape)) == len(large)
        assert found._batching.size((2160, 3840)) < 12
    finally:
        del taken
        torch.cuda.empty_cache()


@on_gpu
def test_threads_on_a_gpu_do_not_disturb_each_other(pictures: list[Image]) -> None:
    assert_threads_agree(detector(device=Device("cuda:0")), pictures)
