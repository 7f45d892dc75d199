"""Temporary files of a run, counted when they go: what `[5/5] Cleanup` tells."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
    """A folder of its own that goes at the end, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="capstone-") as folder:
        try:
            yield Path(folder)
        finally:
            started = time.monotonic()
            for path in Path(folder).rglob("*"):
                if path.is_file():
                    _removed.files += 1
                    _removed.bytes += path.stat().st_size
                    path.unlink()
            _removed.elapsed_s += time.monotonic() - started


def take_removed() -> Removed:
    """What this process has removed since it was last asked: its ops run one after the other."""
    global _removed
    taken, _removed = _removed, Removed()
    return taken
