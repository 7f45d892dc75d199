"""Turns on this machine's devices: as many runs at once load a model and pass over pixels as it has GPUs.

Download, checks, pictures and publishing hold no device, so they overlap with the passes of other runs. A
turn is a lock on a file, which the kernel releases when a process dies. On AWS Batch each container has files
and a GPU of its own, and no run waits.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

from batch_gpu.gpus import gpu_count

_ASK_AGAIN_S = 0.02


@contextmanager
def device_turn(
    instance: str, *, waiting: Callable[[float], None], devices: int | None = None
) -> Iterator[None]:
    """Hold a device for the block.

    Args:
        instance: whose runs share the devices, as text.
        waiting: called again and again while all devices are taken, with the seconds waited so far.
        devices: how many there are; by default this machine's GPUs, or 1, because one pass uses all cores.
    """
    descriptor = _take(_files(instance, devices or _devices()), waiting)
    try:
        yield
    finally:
        os.close(descriptor)


def _take(files: list[Path], waiting: Callable[[float], None]) -> int:
    began = time.monotonic()
    while True:
        for file in files:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return descriptor
        waiting(time.monotonic() - began)
        time.sleep(_ASK_AGAIN_S)


def _files(instance: str, devices: int) -> list[Path]:
    name = f"capstone-{os.getuid()}-{sha256(instance.encode()).hexdigest()[:16]}"
    return [Path(tempfile.gettempdir()) / f"{name}.device-{number}" for number in range(devices)]


@cache
def _devices() -> int:
    return max(1, gpu_count())
