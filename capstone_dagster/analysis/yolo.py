"""Ultralytics YOLO as a detector: pictures in memory in, detections out, and nothing said or sent to anybody.

Importing this module imports neither torch nor ultralytics; making a `YoloDetector` does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .detections import Detections
from .errors import AnalysisError, GpuError, GpuOutOfMemory, InvalidAnalysisSettings, ModelUnavailable
from .settings import AnalysisSettings
from .video import Image

# The most objects that one picture may hold: Ultralytics' own limit, more than a full grandstand has at 640
# px.
_MAX_DETECTIONS = 300

# Ultralytics reads these when it is first imported. Set by us unless the operator did: no look-ups on the
# network at import, no usage events, no installing of packages by itself, no chatter, and pickles
# restricted to known classes.
_ULTRALYTICS_ENVIRONMENT = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
}

# Tasks whose results have upright boxes.
_BOX_TASKS = ("detect", "segment", "pose")


def import_ultralytics() -> Any:
    """The `ultralytics` module, kept from phoning home, also when somebody else imported it before.

    Weights that are asked for by name can still be downloaded through it.
    """
    for variable, value in _ULTRALYTICS_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # Ultralytics sets this to 1 for its trainer's sake; it would slow every child process down.
    threads = os.environ.get("OMP_NUM_THREADS")
    import ultralytics

    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    from ultralytics.utils import SETTINGS, checks

    # In this process only: the settings file in the user's home belongs to the user.
    dict.__setitem__(SETTINGS, "sync", False)
    checks.AUTOINSTALL = False
    from ultralytics.utils.events import events

    events.enabled = False
    return ultralytics


class YoloDetector:
    """A detector on Ultralytics' predictor, whole batches at a time."""

    def __init__(
        self, model: Path, settings: AnalysisSettings, *, device: str, sha256: str, backend: str
    ) -> None:
        started = time.perf_counter()
        ultralytics = import_ultralytics()
        self.device = _choose_device(device, backend=backend)
        self.name = model.stem
        self.sha256 = sha256
        self.backend = backend
        with _translated(f"The model {model.name} does not load", ModelUnavailable):
            # An exported model does not carry its task where Ultralytics looks for it at this point.
            self._yolo = ultralytics.YOLO(str(model), task=None if model.suffix == ".pt" else "detect")
            task, names = self._yolo.task, dict(self._yolo.names)
        if task not in _BOX_TASKS:
            raise ModelUnavailable(
                f"A model for one of {_BOX_TASKS} was expected, but {model.name} is for {task!r}."
            )
        self._class_ids = sorted(number for number, name in names.items() if name in settings.labels)
        self.labels = tuple(names[number] for number in self._class_ids)
        self.missing_labels = tuple(name for name in settings.labels if name not in self.labels)
        if not self.labels:
            raise InvalidAnalysisSettings(
                f"labels must name classes of the model {model.name}, but are {settings.labels!r}; "
                f"it knows: {', '.join(str(name) for name in names.values())}."
            )
        # Class number of the model -> our label number; -1 for what we did not ask for.
        self._label_ids = np.full(max(names) + 1, -1, dtype=np.int32)
        self._label_ids[self._class_ids] = np.arange(len(self.labels), dtype=np.int32)
        self._arguments: dict[str, Any] = {
            "conf": settings.weak_score,
            "iou": settings.iou,
            "classes": self._class_ids,
            "max_det": _MAX_DETECTIONS,
            "device": self.device,
            "verbose": False,
            "save": False,
        }
        if settings.image_size is not None:
            self._arguments["imgsz"] = settings.image_size
        self._warm_up(model)
        self.load_seconds = time.perf_counter() - started

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One `Detections` for each BGR picture, in order."""
        if not images:
            return []
        with _translated(f"The model {self.name} failed on {len(images)} pictures", None):
            results = self._yolo.predict(list(images), **self._arguments)
            return [self._detections(result.boxes.data.cpu().numpy()) for result in results]

    def _detections(self, rows: np.ndarray[Any, Any]) -> Detections:
        """From (n, 6) rows x1, y1, x2, y2, score, class."""
        label_ids = self._label_ids[rows[:, 5].astype(np.intp)]
        return Detections.of(rows[:, :4], rows[:, 4], label_ids, self.labels)

    def _warm_up(self, model: Path) -> None:
        """Loads the weights for good: some damage shows only when a picture passes through."""
        import torch

        with _translated(f"The model {model.name} does not run", ModelUnavailable):
            self._yolo.predict([np.zeros((64, 64, 3), dtype=np.uint8)], **self._arguments)
        if self.device == "cpu":
            # Ultralytics leaves torch one core less than there are; on two cores that is half the speed.
            torch.set_num_threads(_usable_cores())


def _choose_device(wanted: str, *, backend: str) -> str:
    if wanted == "cpu" or (wanted == "auto" and backend == "ultralytics-openvino"):
        return "cpu"
    if backend == "ultralytics-openvino":
        raise InvalidAnalysisSettings(
            f"device {wanted} was asked for, but an OpenVINO model runs on the CPU; "
            "set the device to cpu or auto, or give the .pt model."
        )
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda:0" if gpus else "cpu"
    number = int(wanted.partition(":")[2] or 0)
    if number >= gpus:
        raise InvalidAnalysisSettings(
            f"device {wanted} was asked for, but this machine has {gpus} usable CUDA devices; "
            "set the device to cpu or auto, or run where the GPU is."
        )
    return f"cuda:{number}"


@contextmanager
def _translated(what: str, otherwise: type[AnalysisError] | None) -> Iterator[None]:
    """Gives torch's failures the class they are known by, and all others that of `otherwise`, if given."""
    import torch

    try:
        yield
    except AnalysisError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise GpuOutOfMemory(
            f"{what}: the GPU has no room for it ({_first_line(error)}); "
            "lower the batch size, or use a larger GPU."
        ) from error
    except Exception as error:
        if isinstance(error, torch.AcceleratorError) or (
            isinstance(error, RuntimeError) and "CUDA" in str(error)
        ):
            raise GpuError(
                f"{what}: the GPU failed ({_first_line(error)}); try again on another machine."
            ) from error
        if otherwise is None:
            raise
        raise otherwise(
            f"{what} ({type(error).__name__}: {_first_line(error)}); give a detection model that Ultralytics "
            "can load. One with classes of your own needs ULTRALYTICS_SAFE_LOAD=false: do so if you trust it."
        ) from error


def _usable_cores() -> int:
    if hasattr(
        os, "sched_getaffinity"
    ):  # not on every system; a container may have fewer cores than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
