"""Writes a command's output to a file that the caller names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


def check_file(path: Path) -> None:
    """Refuse a folder before any work is done.

    Raises:
        BadParameter: the path is a folder.
    """
    if path.is_dir():
        raise typer.BadParameter(f"a file was expected, and {path} is a folder: name a file in it")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file beside the target, which gets the target's name when it is complete.

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
