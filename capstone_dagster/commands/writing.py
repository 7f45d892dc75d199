"""Where a command writes what it was asked for: into a file of the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


def check_file(path: Path) -> None:
    """Refuse a folder, before work is done that could not be written.

    Raises:
        BadParameter: it is one.
    """
    if path.is_dir():
        raise typer.BadParameter(f"a file was expected, and {path} is a folder: name a file in it")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file beside the one that is meant, which takes its name when all is written.

    Raises:
        BadParameter: a folder has that name.
    """
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
