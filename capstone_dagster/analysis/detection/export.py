"""A checkpoint exported to OpenVINO once, and kept under the SHA-256 of its content.

The export runs in a process of its own: it needs PyTorch, which costs seconds and half a gigabyte that the
process which analyses videos need not pay, and being killed it leaves nothing that passes for a model.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from filelock import FileLock

from ..errors import AnalysisError, ModelUnavailable, first_line
from .checkpoint import load_checkpoint, ultralytics_version

# Raise when the way of exporting changes, so that no older export is taken for a new one.
_FORMAT = 1

# A killed export leaves its folder. YOLOv8x takes a minute; after a day nobody works in it any more.
_ABANDONED_AFTER_S = 24 * 3600

_SUFFIX = "_openvino_model"


def openvino_export(
    checkpoint: Path, sha256: str, *, cache: Path, say: Callable[[str], None] = lambda sentence: None
) -> Path:
    """The directory of the checkpoint's export, made if it is not there yet.

    Of several processes that ask at once one exports and the others wait for it.

    Args:
        checkpoint: an Ultralytics `.pt` file for detection, segmentation or poses.
        sha256: of its content.
        cache: where exports are kept; made when needed.
        say: takes a sentence before anything that takes seconds.

    Raises:
        ModelUnavailable: the checkpoint does not load or cannot be exported, or the cache cannot be written.
    """
    # Another Ultralytics exports another graph; the file's name is kept because people read it in logs.
    home = cache / "openvino" / f"{sha256}-{ultralytics_version()}-{_FORMAT}"
    target = home / f"{checkpoint.stem}{_SUFFIX}"
    try:
        if target.is_dir():
            return target
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            if not target.is_dir():
                _remove_abandoned(home)
                say(f"Exporting {checkpoint.name} to OpenVINO, once: this takes seconds to a minute.")
                _export_into(home, checkpoint, target)
    except OSError as error:
        raise ModelUnavailable(
            f"The export of {checkpoint.name} could not be kept in {cache} ({error}); "
            "name a directory that can be written, with some hundred megabytes of room."
        ) from error
    return target


def shipped_export(checkpoint: Path, sha256: str) -> Path | None:
    """The directory of an export that ships beside the checkpoint; None if there is none of this content.

    Its `metadata.yaml` has a `checkpoint_sha256` beside what Ultralytics writes: an export that merely lies
    there can be of other weights.
    """
    export = checkpoint.with_name(f"{checkpoint.stem}{_SUFFIX}")
    try:
        fields = yaml.safe_load((export / "metadata.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return export if isinstance(fields, dict) and fields.get("checkpoint_sha256") == sha256 else None


def discard(export: Path) -> None:
    """Forgets an export that proved damaged, so that the next one who asks makes it anew.

    Raises:
        ModelUnavailable: it cannot be removed, as in a container whose file system is read-only.
    """
    try:
        with FileLock(export.parent / ".lock"):
            shutil.rmtree(export, ignore_errors=True)
    except OSError as error:
        raise ModelUnavailable(
            f"The export {export} does not load, and cannot be made anew there ({error}); name another "
            "directory for models, or build the image again."
        ) from error


def _export_into(home: Path, checkpoint: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home, prefix=".exporting-", ignore_cleanup_errors=True) as folder:
        # Ultralytics writes beside the checkpoint, so the checkpoint has to lie in our folder.
        here = Path(folder) / checkpoint.name
        here.symlink_to(checkpoint.resolve())
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(here.absolute())],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": _import_path()},
        )
        exported = here.with_name(target.name)
        if done.returncode != 0 or not exported.is_dir():
            raise ModelUnavailable(_complaint(checkpoint, done))
        for file in exported.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        exported.replace(target)


def _import_path() -> str:
    """The child imports what its parent does, also where the project is not installed."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)


def _complaint(checkpoint: Path, done: subprocess.CompletedProcess[str]) -> str:
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        return str(json.loads(last)["error"])
    except (ValueError, KeyError, TypeError):
        pass
    if done.returncode < 0:
        return (
            f"Exporting {checkpoint.name} to OpenVINO was ended by signal {-done.returncode} (9 is what a "
            "machine without free memory does); give it more memory, or an exported *_openvino_model "
            "directory."
        )
    reason = (done.stderr.strip().splitlines() or ["nothing was said"])[-1][:200]
    return f"Exporting {checkpoint.name} to OpenVINO failed ({reason}); give an exported *_openvino_model."


def _remove_abandoned(home: Path) -> None:
    for folder in home.glob(".exporting-*"):
        if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(folder, ignore_errors=True)


def _export(checkpoint: Path) -> None:
    """Runs in the child: writes the directory beside the checkpoint."""
    yolo = load_checkpoint(checkpoint)
    # Dynamic, so that one export serves every shape: it is given a fixed one when it is compiled.
    yolo.export(
        format="openvino", dynamic=True, imgsz=yolo.overrides.get("imgsz", 640), device="cpu", verbose=False
    )


def _main() -> int:
    try:
        _export(Path(sys.argv[1]))
    except Exception as error:  # the parent hears of whatever it is in one sentence
        message = str(error) if isinstance(error, AnalysisError) else None
        if message is None:
            reason = first_line(error)
            message = (
                f"The model {Path(sys.argv[1]).name} cannot be exported to OpenVINO ({type(error).__name__}: "
                f"{reason}); give an exported *_openvino_model directory, or another model."
            )
        print(json.dumps({"error": message}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
