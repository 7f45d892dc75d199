"""What a detector is, and how one is loaded from a model file; backends stand in their own modules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .detections import Detections
from .errors import InvalidAnalysisSettings, ModelUnavailable
from .identity import model_sha256
from .settings import AnalysisSettings
from .video import Image


class Detector(Protocol):
    """Finds objects in pictures. Anything with these attributes will do; tests use one without a model.

    Attributes:
        name: the model's name, for people.
        sha256: of the model's content, as `model_sha256` computes it.
        labels: the labels of interest that it really can find, in the model's own order.
        missing_labels: the labels of interest that the model does not have.
        device: where it runs, `cpu` or `cuda:0`.
        backend: what runs it, such as `ultralytics-torch`.
        load_seconds: how long loading and warming up took.
    """

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def missing_labels(self) -> tuple[str, ...]: ...
    @property
    def device(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def load_seconds(self) -> float: ...

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One `Detections` for each (height, width, 3) uint8 BGR picture, in order; `names` are `labels`."""
        ...


def load_detector(
    model: Path, settings: AnalysisSettings, *, device: str = "auto", expected_sha256: str | None = None
) -> Detector:
    """Loads a model and warms it up: an Ultralytics `.pt` file or an exported `*_openvino_model` directory.

    `device` is `auto` (a GPU where there is one that can run the model, else the CPU), `cpu` or `cuda:N`. The
    SHA-256 is compared before anything is loaded, because loading a `.pt` file can run code that is in it.
    """
    model = Path(model)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InvalidAnalysisSettings(
            f"device must be auto, cpu or cuda:N, but is {device!r}; correct the setting."
        )
    sha256 = model_sha256(model)
    if expected_sha256 is not None and sha256 != expected_sha256.strip().lower():
        raise ModelUnavailable(
            f"The model {model.name} was expected to have SHA-256 {expected_sha256.strip().lower()}, "
            f"but has {sha256}; it was not loaded. Fetch the pinned model, or pin the one that you trust."
        )
    if model.suffix == ".pt" and model.is_file():
        backend = "ultralytics-torch"
    elif model.name.endswith("_openvino_model") and model.is_dir():
        backend = "ultralytics-openvino"
    else:
        raise ModelUnavailable(
            "A model in a known format was expected, an Ultralytics .pt file or a directory named "
            f"*_openvino_model, but came {model}; export it to one of these."
        )
    from .yolo import YoloDetector  # only now: it brings torch

    return YoloDetector(model, settings, device=device, sha256=sha256, backend=backend)
