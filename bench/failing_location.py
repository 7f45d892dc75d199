"""The project's code location with a detector that can be told to fail: for bench/time_to_alert.py alone.

What it is told stands in the file that TIME_TO_ALERT_FAULT names; when it first met that, the time of the
file that TIME_TO_ALERT_MET names says.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from capstone_dagster.analysis.errors import GpuError, GpuOutOfMemory
from capstone_dagster.assets.steps import detection
from capstone_dagster.definitions import defs as defs

_load_detector = detection.load_detector


def load_or_fail(*arguments: Any, **options: Any) -> Any:
    """The real detector, unless a failure is asked for."""
    file, met = (Path(os.environ[f"TIME_TO_ALERT_{name}"]) for name in ("FAULT", "MET"))
    fault = file.read_text() if file.exists() else ""
    if fault and fault != "hang" and not met.exists():
        met.touch()
    match fault:
        case "gpu-out-of-memory":
            raise GpuOutOfMemory("The GPU has no room for one picture of 1920×1080 (a stand-in says so).")
        case "gpu-error":
            raise GpuError("CUDA error: an illegal memory access was encountered (a stand-in says so).")
        case "internal":
            raise RuntimeError("index 7 is out of bounds for axis 0 with size 7 (a stand-in says so)")
        case "hang":
            time.sleep(3600)
    return _load_detector(*arguments, **options)


detection.load_detector = load_or_fail
