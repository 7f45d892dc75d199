"""What a detector is, and how one is loaded from a model file; backends stand in their own modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from ..detections import Detections
from ..errors import InvalidAnalysisSettings, ModelUnavailable
from ..footage.video import Image
from ..identity import model_sha256
from ..settings import AnalysisSettings
from .device import GpuState

DEFAULT_CACHE = Path("~/.cache/capstone/models")
"""Where exports and compiled models are kept unless somewhere else is named."""


class Detector(Protocol):
    """Finds objects in pictures. Anything with these attributes will do; tests use one without a model.

    Attributes:
        name: the model's name, for people.
        sha256: of the model's content, as `model_sha256` computes it.
        labels: the labels of interest that it really can find, in the model's own order.
        missing_labels: the labels of interest that the model does not have.
        device: where it runs, `cpu` or `cuda:0`.
        backend: what runs it and in which precision, such as `openvino-bf16` or `torch-f16`.
        cpu_fallback: why it runs on the CPU although a GPU could be expected; None otherwise.
        load_seconds: how long loading and warming up took.
        workers: how many threads may and should call `detect` at once.
        batch_size: how many pictures a call should bring: costs memory, changes no result.
        backoffs: how often, since it was loaded, a batch was made smaller because there was no room for it.
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
    def cpu_fallback(self) -> str | None: ...
    @property
    def load_seconds(self) -> float: ...
    @property
    def workers(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def backoffs(self) -> int: ...

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One `Detections` for each (height, width, 3) uint8 BGR picture, in order; `names` are `labels`."""
        ...

    def gpu_state(self) -> GpuState | None:
        """How its GPU is doing now; None where it runs on the CPU, or cannot tell. Raises nothing."""
        ...

    def rest(self) -> None:
        """Between two videos: give the GPU's memory back, but for the weights, so that others can use it."""
        ...


def load_detector(
    model: Path,
    settings: AnalysisSettings,
    *,
    device: str = "auto",
    require_gpu: bool = False,
    expected_sha256: str | None = None,
    cache: Path = DEFAULT_CACHE,
    say: Callable[[str], None] = lambda sentence: None,
) -> Detector:
    """Load a model and warm it up: an Ultralytics `.pt` file or an exported `*_openvino_model` directory.

    On the CPU a checkpoint runs as its OpenVINO export: the one beside it, else one that is made once, which
    needs PyTorch. The SHA-256 is compared before anything is loaded, because loading a `.pt` file can run
    code in it.

    >>> detector = load_detector(Path("person_face.pt"), AnalysisSettings(), device="cpu")
    >>> detector.labels
    ('person', 'face')

    Args:
        device: `auto` (a GPU that can run the model if there is one, else the CPU), `cpu` or `cuda:N`.
        require_gpu: refuse to run on the CPU.
        cache: directory for exports and compiled models.
        say: called with a sentence before each step that takes seconds.

    Raises:
        ModelUnavailable: the model is missing, damaged, of unknown format, or not the expected one;
            `PyTorchMissing` if it needs PyTorch, which is not installed.
        InvalidAnalysisSettings: the device does not exist, or the model has none of the labels.
        GpuError: `require_gpu`, and there is none.
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
        return _of_checkpoint(model, settings, device, require_gpu, sha256, cache.expanduser(), say)
    if model.name.endswith("_openvino_model") and model.is_dir():
        if require_gpu or device.startswith("cuda"):
            raise InvalidAnalysisSettings(
                f"A GPU was asked for (device {device}), but {model.name} is an OpenVINO model, which runs "
                "on the CPU; set the device to cpu or auto and do not require a GPU, or give the .pt model."
            )
        return _on_openvino(model, settings, model.name, sha256, cache)
    raise ModelUnavailable(
        "A model in a known format was expected, an Ultralytics .pt file or a directory named "
        f"*_openvino_model, but came {model}; export it to one of these."
    )


def _of_checkpoint(
    model: Path,
    settings: AnalysisSettings,
    wanted: str,
    require_gpu: bool,
    sha256: str,
    cache: Path,
    say: Callable[[str], None],
) -> Detector:
    from .checkpoint import require_pytorch
    from .device import choose_device
    from .export import discard, openvino_export, shipped_export

    device = choose_device(wanted, require_gpu=require_gpu)
    shipped = shipped_export(model, sha256)
    if device.name == "cpu" and shipped is not None:
        return _on_openvino(shipped, settings, model.stem, sha256, cache, device.cpu_fallback)
    require_pytorch(f"The checkpoint {model.name}")
    if device.name != "cpu" or find_spec("openvino") is None:
        from .torch_detector import TorchDetector  # only now: it brings torch

        return TorchDetector(model, settings, device=device, sha256=sha256)
    for attempt in (1, 2):
        export = openvino_export(model, sha256, cache=cache, say=say)
        try:
            return _on_openvino(export, settings, model.stem, sha256, cache, device.cpu_fallback)
        except ModelUnavailable:
            if attempt == 2:
                raise
            # It came whole into the cache, so something happened to it there.
            say(f"The cached export of {model.name} is damaged and made anew.")
            discard(export)
    raise AssertionError("unreachable")


def _on_openvino(
    export: Path,
    settings: AnalysisSettings,
    name: str,
    sha256: str,
    cache: Path,
    cpu_fallback: str | None = None,
) -> Detector:
    from .openvino_detector import OpenVinoDetector

    compiled = cache.expanduser() / "openvino" / "compiled"
    return OpenVinoDetector(
        export, settings, name=name, sha256=sha256, compiled=compiled, cpu_fallback=cpu_fallback
    )
