"""YOLO by PyTorch: for GPUs, and for the CPU where OpenVINO is missing.

Importing this module imports torch.
"""

from __future__ import annotations

import copy
import queue
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..detections import Detections
from ..errors import ModelUnavailable
from ..footage.video import Image
from ..settings import AnalysisSettings, Precision
from .batching import Batching
from .checkpoint import load_checkpoint
from .device import Device, GpuState, usable_cores
from .gpu import TorchMemory, gpu_state, translated
from .labels import LabelMap
from .letterbox import Letterbox, model_size
from .suppression import MAX_DETECTIONS
from .torch_steps import letterboxed, standing

# Pictures at once. On a GPU the launching of some hundred kernels takes the same time for any number of them,
# and 16 of 1080p are 100 MB of staging memory for each worker; chosen by reckoning, not measured on one.
_BATCH = {"cuda": 16, "cpu": 1}

# While one batch is computed, the next one is copied and letterboxed.
_WORKERS = {"cuda": 2, "cpu": 1}

# Memory is measured with one picture; libraries take more for some batches than for one, and blocks do not
# always fit together.
_SHARE_OF_FREE_MEMORY = 0.7

# What most cameras give: height, width.
_USUAL_SHAPE = (1080, 1920)

_BACKENDS = {torch.float16: "torch-f16", torch.float32: "torch-f32"}


def arithmetic(device: str, precision: Precision) -> torch.dtype:
    """Half precision on a GPU, unless the settings ask for all 32 bits; a CPU is slower with it."""
    return torch.float16 if device != "cpu" and precision == "auto" else torch.float32


class TorchDetector:
    """A detector on an Ultralytics checkpoint, batches at a time in as many threads as `workers` says."""

    def __init__(self, checkpoint: Path, settings: AnalysisSettings, *, device: Device, sha256: str) -> None:
        """Loads the checkpoint, whose SHA-256 is given, and warms it up.

        Raises:
            ModelUnavailable: the checkpoint is damaged, or no YOLO detection model.
            InvalidAnalysisSettings: it has none of the labels of interest.
            GpuOutOfMemory: the GPU has no room for it.
            GpuError: the GPU failed.
        """
        started = time.perf_counter()
        self.name = checkpoint.stem
        self.sha256 = sha256
        self.device = device.name
        self.cpu_fallback = device.cpu_fallback
        self._settings = settings
        self._kind = torch.device(self.device).type
        self._dtype = arithmetic(self.device, settings.precision)
        self.backend = _BACKENDS[self._dtype]
        self.workers = _WORKERS[self._kind]
        if self._kind == "cpu":
            # Ultralytics leaves torch one core less than there are; on two cores that is half the speed.
            torch.set_num_threads(usable_cores())
        elif self._dtype == torch.float32:
            # Else convolutions round their input to 19 bits, for the whole process, which `full` forbids.
            torch.backends.cudnn.allow_tf32 = False
        with translated(f"The model {self.name} does not run", ModelUnavailable):
            yolo = load_checkpoint(checkpoint)
            self._labels = LabelMap(dict(yolo.names), settings.labels, model=self.name)
            self.labels = self._labels.labels
            self.missing_labels = self._labels.missing
            stride = max(int(yolo.model.stride.max()), 32)  # as Ultralytics does
            side = model_size(settings.image_size or yolo.overrides.get("imgsz", 640), stride)
            self._fitted = partial(Letterbox.rectangular, size=(side, side), stride=stride)
            model = _prepared(yolo.model, self.name, self.device, self._dtype)
            self._suppresses = bool(model.end2end)
            classes = np.arange(self._labels.class_count)
            self._label_ids = torch.from_numpy(self._labels.label_ids(classes)).to(self.device)
            self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
            for _ in range(self.workers):
                self._idle.put(_Worker(model, self.device))
            self._batching = Batching(TorchMemory(self.device), self._first_size)
            self._warm_up()
        self.load_seconds = time.perf_counter() - started

    @property
    def batch_size(self) -> int:
        """Pictures of the usual size that are worked on at once; a call may bring any number."""
        return self._batching.size(_USUAL_SHAPE)

    @property
    def backoffs(self) -> int:
        """Batches that were halved because there was no room for them."""
        return self._batching.backoffs

    def gpu_state(self) -> GpuState | None:
        """Load and memory of the GPU, by all processes; None on the CPU or if the driver reports nothing."""
        return gpu_state(self.device) if self._kind == "cuda" else None

    def rest(self) -> None:
        """Gives back the GPU's memory that PyTorch keeps for later."""
        if self._kind == "cuda":
            TorchMemory(self.device).release()

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One `Detections` for each BGR picture, in order; may be called by `workers` threads at once.

        Raises:
            GpuOutOfMemory: not even one picture fits.
            GpuError: the GPU failed.
        """
        found: dict[int, Detections] = {}
        positions: dict[tuple[int, int], list[int]] = {}
        for position, image in enumerate(images):
            positions.setdefault((image.shape[0], image.shape[1]), []).append(position)
        worker = self._idle.get()
        try:
            with (
                translated(f"The model {self.name} failed on {len(images)} pictures", None),
                worker.at_work(),
            ):
                for shape, where in positions.items():
                    alike = [images[position] for position in where]
                    work = partial(self._detect_batch, worker, self._fitted(*shape))
                    found.update(zip(where, self._batching.run(shape, alike, work), strict=True))
        finally:
            self._idle.put(worker)
        return [found[position] for position in range(len(images))]

    def _detect_batch(
        self, worker: _Worker, letterbox: Letterbox, images: Sequence[Image]
    ) -> list[Detections]:
        pixels = worker.staged(images).to(self.device, non_blocking=True)
        output = worker.model(letterboxed(pixels, letterbox, self._dtype))
        while isinstance(output, (tuple, list)):  # beside it stand masks, key points and raw features
            output = output[0]
        rows = standing(
            output,
            self._label_ids,
            suppressed=self._suppresses,
            min_score=self._settings.weak_score,
            iou=self._settings.iou,
        )
        table = rows.cpu().numpy()  # the one transfer back; waits for this worker's stream alone
        each = (table[table[:, 0] == picture][:MAX_DETECTIONS] for picture in range(len(images)))
        return [
            Detections.of(letterbox.to_source(found[:, 1:5]), found[:, 5], found[:, 6], self.labels)
            for found in each
        ]

    def _warm_up(self) -> None:
        """Loads kernels, takes memory; some damage of a model shows only when a picture passes."""
        picture = np.zeros((*_USUAL_SHAPE, 3), np.uint8)
        worker = self._idle.get()
        with worker.at_work():
            self._detect_batch(worker, self._fitted(*_USUAL_SHAPE), [picture])
            if self._kind == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
                self._detect_batch(worker, self._fitted(*_USUAL_SHAPE), [picture])
                self._picture_bytes = torch.cuda.max_memory_allocated(self.device) - before
        self._idle.put(worker)
        if self._kind == "cuda":
            for _ in range(self.workers):  # each worker in turn: the queue gives the one longest idle
                self.detect([picture] * self.batch_size)

    def _first_size(self, shape: Hashable) -> int:
        """How many pictures of (height, width) to begin with, by what the one of the warm-up took."""
        most = _BATCH[self._kind]
        if self._kind == "cpu":
            return most
        assert isinstance(shape, tuple)
        this, usual = self._fitted(*shape), self._fitted(*_USUAL_SHAPE)
        larger = max(
            this.source_height * this.source_width / (usual.source_height * usual.source_width),
            this.height * this.width / (usual.height * usual.width),
        )
        room = TorchMemory(self.device).free() * _SHARE_OF_FREE_MEMORY / self.workers
        return min(most, int(room / (self._picture_bytes * larger)))


class _Worker:
    """What one thread needs for itself: a stream, staging memory, and a model whose weights all share."""

    def __init__(self, model: Any, device: str) -> None:
        # Ultralytics' head keeps its grid from call to call: two threads would take each other's, of another
        # shape or not computed yet on the other stream.
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        self._stream = torch.cuda.Stream(device) if device != "cpu" else None
        self._staging = torch.empty(0, dtype=torch.uint8)
        if self._stream is not None:
            torch.cuda.synchronize(device)  # the weights were copied by another stream

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """This thread computes on the worker's stream, and remembers nothing for gradients."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    def staged(self, images: Sequence[Image]) -> torch.Tensor:
        """(n, height, width, 3) uint8, in memory from which a GPU copies while the processor goes on."""
        size = sum(image.nbytes for image in images)
        if self._stream is not None:
            self._stream.synchronize()  # a batch that failed may still be copying from it
        if self._staging.numel() < size:
            self._staging = torch.empty(0, dtype=torch.uint8)  # first let go
            self._staging = torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)
        staged = self._staging[:size].view(len(images), *images[0].shape)
        np.stack(images, out=staged.numpy())
        return staged


def _prepared(model: Any, name: str, device: str, dtype: torch.dtype) -> Any:
    """Ready for inference: batch norms folded in, on its device, in its precision and memory format."""
    from ultralytics.nn.modules import Detect

    head = model.model[-1]
    if not isinstance(head, Detect):
        raise ModelUnavailable(f"A YOLO model was expected, but {name} ends in {type(head).__name__}.")
    # Ultralytics' own choice where a model can do without suppression but need not.
    model.end2end = False
    model = model.fuse(verbose=False).eval().requires_grad_(False)
    model = model.to(device=device, dtype=dtype, memory_format=torch.channels_last)
    # Half precision has steps of half a pixel beyond 512: boxes are decoded in 32 bits.
    head.dfl.float()
    head.dfl.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    return model
