"""A GPU's memory and its failures, as PyTorch tells them, in this library's terms. Imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import AnalysisError, GpuError, GpuOutOfMemory, first_line
from .device import GpuState


class TorchMemory:
    """The memory of the device that models run on; a `batching.Memory`. The processor's is not watched."""

    def __init__(self, device: str) -> None:
        self._device = device

    def free(self) -> int:
        """Bytes that nobody uses, those included that PyTorch keeps for later."""
        if self._device == "cpu":
            return 0
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0] + kept)

    def release(self) -> None:
        """Gives back what PyTorch keeps for later."""
        torch.cuda.empty_cache()

    def is_exhausted(self, error: Exception) -> bool:
        """Also where staging memory or one of CUDA's libraries was refused: that has no class of its own."""
        return isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError)
            and re.search("CUDA.*out of memory|ALLOC_FAILED", str(error)) is not None
        )


def gpu_state(device: str) -> GpuState | None:
    """How a CUDA device is doing; None if it does not tell, which is nobody's failure."""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except Exception:
        return None
    try:
        utilization: float | None = float(torch.cuda.utilization(device))
    except Exception:  # the driver's library is missing, forbidden, or does not know this device
        utilization = None
    return GpuState((total - free) / (1 << 20), total / (1 << 20), utilization)


@contextmanager
def translated(what: str, otherwise: type[AnalysisError] | None = None) -> Iterator[None]:
    """Gives a GPU's failures the class they are known by, and all others that of `otherwise`, if given."""
    try:
        yield
    except AnalysisError:
        raise
    except Exception as error:
        if TorchMemory("cpu").is_exhausted(error):
            raise GpuOutOfMemory(
                f"{what}: the GPU has no room for it ({first_line(error)}); take a smaller model or a larger "
                "GPU, or end what else uses this one."
            ) from error
        if isinstance(error, torch.AcceleratorError) or (
            isinstance(error, RuntimeError) and re.search("CUDA|cuDNN", str(error))
        ):
            raise GpuError(
                f"{what}: the GPU failed ({first_line(error)}); try again on another machine."
            ) from error
        if otherwise is None:
            raise
        raise otherwise(
            f"{what} ({type(error).__name__}: {first_line(error)}); give a YOLO model that "
            "Ultralytics can run."
        ) from error
