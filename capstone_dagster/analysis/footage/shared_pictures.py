"""Pictures in memory that two processes share."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np

from .pixels import Image


def unnamed_file(name: str) -> int:
    """The descriptor of an empty file in memory (Linux), else of a temporary one without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedPictures:
    """As many pictures of one size as there are places; each is a view of the shared memory.

    Pictures keep the memory alive that they lie in.
    """

    def __init__(self, descriptor: int, width: int, height: int, places: int) -> None:
        """Maps the file; `reserve` has made room in it before."""
        self._shape = (height, width, 3)
        self._each = picture_bytes(width, height)
        self._memory = mmap.mmap(descriptor, self._each * places)

    def bytes_of(self, places: int) -> int:
        """The memory that this number of pictures takes."""
        return self._each * places

    def __getitem__(self, place: int) -> Image:
        height, width, channels = self._shape
        flat = np.frombuffer(
            self._memory, np.uint8, count=height * width * channels, offset=place * self._each
        )
        return flat.reshape(self._shape)


def reserve(descriptor: int, width: int, height: int, places: int) -> None:
    """Reserve room for this number of pictures; memory is used when they are written."""
    os.truncate(descriptor, picture_bytes(width, height) * places)


def picture_bytes(width: int, height: int) -> int:
    """Of one place: whole pages."""
    return -(-width * height * 3 // mmap.PAGESIZE) * mmap.PAGESIZE
