"""Temporary files of a run, counted when they are removed: what `[5/5] Cleanup` reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from capstone_dagster.storage.objects import ObjectStore
from capstone_dagster.storage.scratch import scratch_folder

T = TypeVar("T")


@dataclass(slots=True)
class Removed:
    """What was removed.

    Attributes:
        elapsed_s: time that removing it took.
    """

    files: int = 0
    bytes: int = 0
    elapsed_s: float = 0.0


_removed = Removed()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder that is removed at the end, also after an error."""
    with scratch_folder() as folder:
        try:
            yield folder
        finally:
            started = time.monotonic()
            for path in folder.rglob("*"):
                if path.is_file():
                    _removed.files += 1
                    _removed.bytes += path.stat().st_size
                    path.unlink()
            _removed.elapsed_s += time.monotonic() - started


def read_object(objects: ObjectStore, key: str, read: Callable[[Path], T]) -> T:
    """What `read` makes of an object, as a file that exists meanwhile."""
    with temporary_folder() as folder:
        path = folder / PurePosixPath(key).name
        objects.get_file(key, path)
        return read(path)


def take_removed() -> Removed:
    """What this process has removed since the last call: its ops run one after the other."""
    global _removed
    taken, _removed = _removed, Removed()
    return taken
