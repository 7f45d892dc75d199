"""Folders for a process's files. A later process removes those of a killed one: videos are personal data."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "capstone-scratch-"
# A folder's owner locks it in the moment after making it.
_YOUNG_S = 60.0
_log = logging.getLogger("capstone.storage")
_swept_by: int | None = None


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder that is removed at the end; the first one of a process removes what others left behind."""
    global _swept_by
    if _swept_by != os.getpid():
        _swept_by = os.getpid()
        sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # The kernel releases it however the process ends.
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(folder)


def sweep() -> int:
    """Remove the folders of processes that have ended; how many there were."""
    removed = 0
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or another process was quicker
            if time.time() - path.stat().st_mtime > _YOUNG_S:
                removed += _remove_if_left(path)
    if removed:
        message = f"{removed} temporary folders of processes that were killed are removed."
        _log.info(message, extra={"action": "scratch.swept", "folders": removed})
    return removed


def _remove_if_left(path: Path) -> bool:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    finally:
        os.close(folder)
    return True
