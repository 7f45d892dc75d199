"""Where a model shall run: a GPU where one can be used, or the CPU, and then whether that deserves a word.

PyTorch takes seconds to import, so it is asked only where something speaks for an NVIDIA GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import GpuError, InvalidAnalysisSettings, PyTorchMissing, first_line
from .checkpoint import require_pytorch

# What only a machine with an NVIDIA GPU has: its devices on Linux, its driver (which a container sees that
# was started without the devices), and the driver of Windows as its Linux subsystem sees it.
_TRACES = ("/dev/nvidia*", "/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so*")

# Values of CUDA_VISIBLE_DEVICES that hide every GPU.
_HIDDEN = ("", "-1", "NoDevFiles")


@dataclass(frozen=True, slots=True)
class Device:
    """A place to run.

    Attributes:
        name: `cpu` or `cuda:N`.
        cpu_fallback: why it is the CPU although a GPU could be expected; None where it could not.
    """

    name: str
    cpu_fallback: str | None = None


@dataclass(frozen=True, slots=True)
class Gpus:
    """What PyTorch can use.

    Attributes:
        count: how many CUDA devices.
        problem: why there is none; None when there is one.
    """

    count: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class GpuState:
    """Load and memory of a GPU at one moment, by all processes.

    Attributes:
        memory_used_mb, memory_total_mb: MiB.
        utilization_percent: of the driver's last sample, a second or less; None where it does not tell.
    """

    memory_used_mb: float
    memory_total_mb: float
    utilization_percent: float | None


class Machine(Protocol):
    """What a machine tells of its GPUs."""

    def trace(self) -> str | None:
        """What speaks for an NVIDIA GPU, cheap to find; None when nothing does."""
        ...

    def gpus(self) -> Gpus:
        """What PyTorch can use; imports it."""
        ...

    def failure(self, number: int) -> str | None:
        """Why CUDA device `number`, which is there, does not compute; None when it does."""
        ...


class ThisMachine:
    """The machine that this process runs on."""

    def trace(self) -> str | None:
        """A file of the driver or a setting that names a GPU."""
        for pattern in _TRACES:
            found = next(Path("/").glob(pattern.lstrip("/")), None)
            if found is not None:
                return f"{found} is there"
        if os.name == "nt" and shutil.which("nvidia-smi"):
            return "nvidia-smi is installed"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and visible.strip() not in _HIDDEN:
            return f"CUDA_VISIBLE_DEVICES is {visible!r}"
        return None

    def gpus(self) -> Gpus:
        """Starts CUDA, because a driver tells its problems only then."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and visible.strip() in _HIDDEN:
            return Gpus(0, f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides every GPU")
        try:
            require_pytorch("A GPU")
            import torch

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the same in many words
                torch.cuda.init()
                count = torch.cuda.device_count()
        except PyTorchMissing as error:
            return Gpus(0, str(error).rstrip("."))
        # AssertionError is what a PyTorch without CUDA raises, OSError one whose libraries do not load.
        except (ImportError, OSError, AssertionError, RuntimeError) as error:
            return Gpus(0, f"PyTorch cannot use CUDA: {first_line(error)}")
        return Gpus(count, None if count else "PyTorch finds no CUDA device")

    def failure(self, number: int) -> str | None:
        """Computes something, which a GPU too old for this PyTorch, or a broken one, does not."""
        import torch

        try:
            (torch.ones(1, device=f"cuda:{number}") + 1).item()
        except RuntimeError as error:
            return first_line(error)
        return None


def choose_device(wanted: str, *, require_gpu: bool = False, machine: Machine | None = None) -> Device:
    """Where to run what is wanted: `auto` (a GPU that works, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Args:
        require_gpu: it must not be the CPU.
        machine: whose devices; None for this one.

    Raises:
        InvalidAnalysisSettings: `wanted` is none of these, a GPU that is not there, or the CPU although a
            GPU is required.
        GpuError: the GPU that is wanted is there and does not compute, or `require_gpu` and there is none
            that does.
    """
    machine = machine or ThisMachine()
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted):
        raise InvalidAnalysisSettings(
            f"device must be auto, cpu or cuda:N, but is {wanted!r}; correct the setting."
        )
    if wanted == "cpu":
        if require_gpu:
            raise InvalidAnalysisSettings(
                "A GPU is required and the device is set to cpu; set the device to auto or cuda:N, or do not "
                "require a GPU."
            )
        return Device("cpu")
    if wanted == "auto":
        return _best(machine, require_gpu=require_gpu)
    number = int(wanted.partition(":")[2] or 0)
    gpus = machine.gpus()
    if number >= gpus.count:
        raise InvalidAnalysisSettings(
            f"device {wanted} was asked for, but this machine has {gpus.count} usable CUDA devices"
            f"{f' ({gpus.problem})' if gpus.problem else ''}; "
            "set the device to cpu or auto, or run where the GPU is."
        )
    failure = machine.failure(number)
    if failure is not None:
        raise GpuError(f"device {wanted} is there but does not compute ({failure}); run on another machine.")
    return Device(f"cuda:{number}")


def _best(machine: Machine, *, require_gpu: bool) -> Device:
    trace = machine.trace()
    problem = None
    if trace is not None:
        gpus = machine.gpus()
        problem = gpus.problem if gpus.count == 0 else machine.failure(0)
        if problem is None:
            return Device("cuda:0")
    if require_gpu:
        found = "no sign of an NVIDIA GPU" if trace is None else f"{trace}, but {problem}"
        raise GpuError(
            f"A GPU is required, but on this machine there is none to use: {found}; run where the GPU is, "
            "mend its driver, or allow the CPU (CAPSTONE_REQUIRE_GPU=false)."
        )
    return Device("cpu", None if trace is None else f"{trace}, but {problem}")


def usable_cores() -> int:
    """Of the processor, for this process: a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
