"""YOLO on the CPU by OpenVINO: no PyTorch in the process, all cores busy, bf16 where the processor has it."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..detections import Detections
from ..errors import AnalysisError, ModelUnavailable, first_line
from ..footage.video import Image
from ..settings import AnalysisSettings
from .checkpoint import check_task
from .labels import LabelMap
from .letterbox import Letterbox, model_size
from .suppression import select

# The shape of the video at hand and that of the next one: each holds its own copy of the weights.
_SHAPES_KEPT = 2


class OpenVinoDetector:
    """A detector on an Ultralytics export, a picture at a time in as many threads as `workers` says.

    Throughput comes from several threads with a synchronous request each, not from OpenVINO's asynchronous
    queue: that one was seen to hang (Ultralytics issue 25923), and so letterboxing and suppression run in
    the same threads, beside the inference of the others.
    """

    device = "cpu"
    batch_size = 1
    backoffs = 0

    def __init__(
        self,
        directory: Path,
        settings: AnalysisSettings,
        *,
        name: str,
        sha256: str,
        compiled: Path | None = None,
        cpu_fallback: str | None = None,
    ) -> None:
        """Loads the export and warms it up.

        Args:
            name: the model's, for people.
            sha256: of the model that the user named, checkpoint or export.
            compiled: a directory where OpenVINO may keep what it compiled, for a faster start; left alone
                where it cannot be written, as in a container whose file system is read-only.
            cpu_fallback: why this runs on the CPU although a GPU could have been expected.

        Raises:
            ModelUnavailable: the export is damaged, or no detection model.
            InvalidAnalysisSettings: it has none of the labels of interest.
        """
        started = time.perf_counter()
        self.name = name
        self.sha256 = sha256
        self.cpu_fallback = cpu_fallback
        self._settings = settings
        metadata = _Metadata.read(directory, name)
        self._labels = LabelMap(metadata.names, settings.labels, model=name)
        self.labels = self._labels.labels
        self.missing_labels = self._labels.missing
        self._stride = metadata.stride
        side = model_size(settings.image_size or metadata.image_size, metadata.stride)
        self._size = (side, side)
        self._properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            # The cores belong to the decoder too: a thread pinned to one waits for it while another idles.
            "ENABLE_CPU_PINNING": False,
        }
        if settings.precision == "full":
            self._properties["INFERENCE_PRECISION_HINT"] = "f32"
        if compiled is not None and _can_be_written(compiled):
            self._properties["CACHE_DIR"] = str(compiled)
        self._by_shape: OrderedDict[tuple[int, int], _Compiled] = OrderedDict()
        self._compiling = threading.Lock()
        try:
            import openvino

            self._core = openvino.Core()
            self._tensor = openvino.Tensor
            self._graph = next(directory.glob("*.xml"))
            shape = self._core.read_model(self._graph).input(0).partial_shape
            # Exported for one shape only, and perhaps for a fixed batch.
            self._fixed_size = None if shape.is_dynamic else tuple(shape.to_shape())[2:4]
            # The shape of most cameras' pictures; whether the weights are whole shows only when one passes.
            picture = np.zeros((1080, 1920, 3), np.uint8)
            ready = self._compiled(self._letterbox(picture))
            _check_output(ready.output_shape, self._labels.class_count)
            self._detect_one(picture)
        except Exception as error:
            raise ModelUnavailable(
                f"The model {name} does not load ({type(error).__name__}: {first_line(error)}); "
                "export it again, or give another one."
            ) from error
        self.backend = f"openvino-{ready.precision}"
        self.workers = ready.parallel
        self.load_seconds = time.perf_counter() - started

    def gpu_state(self) -> None:
        """There is none."""

    def rest(self) -> None:
        """There is no GPU whose memory others wait for."""

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One `Detections` for each BGR picture, in order; may be called by `workers` threads at once."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: Image) -> Detections:
        letterbox = self._letterbox(image)
        requests = self._compiled(letterbox).requests
        # OpenVINO only borrows the array: it has to live until the inference is over.
        pixels = letterbox.fit(image)[np.newaxis]
        request = requests.get()
        try:
            request.set_input_tensor(self._tensor(pixels, shared_memory=True))
            request.infer()
            # A view of what the request holds: used up before the request goes to another thread.
            boxes, scores, label_ids = select(
                request.get_output_tensor(0).data[0],
                self._labels,
                min_score=self._settings.weak_score,
                iou=self._settings.iou,
            )
        finally:
            requests.put(request)
        return Detections(letterbox.to_source(boxes), scores, label_ids, self.labels)

    def _letterbox(self, image: Image) -> Letterbox:
        height, width = image.shape[:2]
        if self._fixed_size is not None:
            return Letterbox.fixed(height, width, size=self._fixed_size)
        return Letterbox.rectangular(height, width, size=self._size, stride=self._stride)

    def _compiled(self, letterbox: Letterbox) -> _Compiled:
        shape = (letterbox.height, letterbox.width)
        with self._compiling:
            if shape not in self._by_shape:
                while len(self._by_shape) >= _SHAPES_KEPT:
                    self._by_shape.popitem(last=False)
                self._by_shape[shape] = self._compile(*shape)
            self._by_shape.move_to_end(shape)
            return self._by_shape[shape]

    def _compile(self, height: int, width: int) -> _Compiled:
        from openvino import Layout, Type
        from openvino.preprocess import ColorFormat, PrePostProcessor

        model = self._core.read_model(self._graph)
        # A fixed shape, also for a dynamic export: kernels are chosen for it, and INT8 models of dynamic
        # shape crash on processors with AMX (OpenVINO issue 37577).
        model.reshape([1, 3, height, width])
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(Type.u8).set_layout(Layout("NHWC")).set_color_format(
            ColorFormat.BGR
        )
        steps.input().model().set_layout(Layout("NCHW"))
        steps.input().preprocess().convert_element_type(Type.f32).convert_color(ColorFormat.RGB).scale(255.0)
        compiled = self._core.compile_model(steps.build(), "CPU", self._properties)
        parallel = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(parallel):
            requests.put(compiled.create_infer_request())
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return _Compiled(requests, parallel, precision, tuple(compiled.output(0).shape))


def _can_be_written(directory: Path) -> bool:
    # OpenVINO would refuse to compile at all.
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def _check_output(shape: tuple[int, ...], classes: int) -> None:
    """Refuses what only looks like a YOLO model, such as RT-DETR, whose output would be misread."""
    suppressed = len(shape) == 3 and shape[2] == 6
    # A transformer has its places, 300 of them, where YOLO has its classes.
    transposed = shape[2:] == (4 + classes,) and shape[1] != 4 + classes
    raw = len(shape) == 3 and shape[1] >= 4 + classes and not transposed
    if not (suppressed or raw):
        raise ValueError(f"its output of shape {shape} is none of a YOLO detector for {classes} classes")


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A model ready for one shape of input.

    Attributes:
        requests: those that no thread uses at the moment.
        parallel: how many there are: what OpenVINO finds best for this machine.
        precision: of the arithmetic, `bf16` or `f32`; a quantised model's layers are INT8 whatever it says.
        output_shape: of the first output: (1, 4 + classes + extra, places), or (1, boxes, 6).
    """

    requests: queue.SimpleQueue[Any]
    parallel: int
    precision: str
    output_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What Ultralytics writes beside an export.

    Attributes:
        names: by class number.
        image_size: the longer side of what it was exported for, in pixels.
    """

    names: Mapping[int, str]
    stride: int
    image_size: int

    @classmethod
    def read(cls, directory: Path, name: str) -> _Metadata:
        """Raises `ModelUnavailable` where it is not what an export of a detection model has."""
        try:
            fields = yaml.safe_load((directory / "metadata.yaml").read_text())
            check_task(name, fields["task"])
            return cls(
                names={int(number): str(label) for number, label in fields["names"].items()},
                stride=int(fields["stride"]),
                image_size=max(int(side) for side in fields["imgsz"]),
            )
        except AnalysisError:
            raise
        except Exception as error:
            raise ModelUnavailable(
                f"The model {name} does not load: its metadata.yaml was expected to tell task, names, stride "
                f"and imgsz ({type(error).__name__}: {first_line(error)}); export it again with Ultralytics."
            ) from error
