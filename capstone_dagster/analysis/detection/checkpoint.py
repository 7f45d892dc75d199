"""Ultralytics and its checkpoints, loaded without anything said or sent to anybody.

Importing this module imports neither torch nor ultralytics.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ModelUnavailable, PyTorchMissing, first_line

# Ultralytics reads these when it is first imported. Set by us unless the operator did: no look-ups on the
# network at import, no usage events, no installing of packages by itself, no chatter, and pickles
# restricted to known classes.
_ULTRALYTICS_ENVIRONMENT = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
}

BOX_TASKS = ("detect", "segment", "pose")
"""The tasks whose results have upright boxes."""


def require_pytorch(what: str) -> None:
    """Raises `PyTorchMissing` if PyTorch or Ultralytics is not installed; imports neither.

    Args:
        what: what needs them, as the subject of a sentence.
    """
    if any(find_spec(name) is None for name in ("torch", "torchvision", "ultralytics")):
        raise PyTorchMissing(what)


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


def ultralytics_version() -> str:
    """The installed version, of whichever of its distributions is installed, without importing it."""
    try:
        return version("ultralytics-opencv-headless")
    except PackageNotFoundError:
        return version("ultralytics")


def load_checkpoint(path: Path) -> Any:
    """An `ultralytics.YOLO` of a `.pt` file.

    Raises:
        ModelUnavailable: it does not load, or is for a task without upright boxes.
    """
    ultralytics = import_ultralytics()
    try:
        yolo = ultralytics.YOLO(str(path))
        task = yolo.task
        names = dict(yolo.names)
    except Exception as error:  # a damaged pickle can raise anything
        reason = first_line(error)
        raise ModelUnavailable(
            f"The model {path.name} does not load ({type(error).__name__}: {reason}); give a detection model "
            "that Ultralytics loads safely, or export the checkpoint to OpenVINO where it was trained."
        ) from error
    check_task(path.name, task)
    if not names:
        raise ModelUnavailable(f"The model {path.name} names no classes; give a trained detection model.")
    return yolo


def check_task(name: str, task: object) -> None:
    """Refuses what has no upright boxes; raises `ModelUnavailable`."""
    if task not in BOX_TASKS:
        raise ModelUnavailable(f"A model for one of {BOX_TASKS} was expected, but {name} is for {task!r}.")
