"""What decoding one video may cost: a small file may claim endless work, and no ordinary one comes near.

An empty scene is the most that a camera makes of a byte: 52,000 pixels (2160p, x264) and 70 µs of processor
time (1080p, conversions included), measured. Of a GIF it is 5 µs: a recorded terminal, 1,280 × 720.
"""

from __future__ import annotations

import mmap
import resource
import time
from collections.abc import Callable
from fractions import Fraction

from ..errors import UndecodableVideo

# Twice an 8K picture, and the size of the largest camera's that films all around (11,520 × 5,760).
MOST_PIXELS = 8192 * 8192

# A container names each byte once; a file that names bytes again and again is made to cost. Matroska's
# compressed headers add some bytes a frame.
_TIMES_READ = 4
_BYTES_FREE = 16 << 20

_PIXELS_PER_BYTE = 1_000_000
_PIXELS_FREE = 20_000_000_000

# Slow and busy machines take three times as long as the one measured. In an animation 23 bytes change a pixel
# and ask for a whole picture; those that people have take hundreds of bytes for one.
_SECONDS_PER_BYTE = 0.000_25
_SECONDS_PER_BYTE_OF_ANIMATION = 0.000_03
_ANIMATIONS = ("gif", "apng")
# 8K at 60 frames a second takes some 15 processor seconds a second on a slow machine.
_SECONDS_PER_SECOND = 120.0
_SECONDS_FREE = 20.0
# A single frame takes a second where it is large: one that takes so long never ends.
_SECONDS_STALLED = 90

# Decoded pictures wait in threads and for reordering: 16 of 8K with 10 bits are 1.6 GB.
MOST_MEMORY = 6 << 30
# What is asked for to see whether there is memory at all; so much stays beyond the limit to find out.
SOME_MEMORY = 64 << 20


class Budget:
    """Counts what a pass over one file costs, in a process of its own; raises where it is too much.

    >>> processor = iter([0.0, 34.0])
    >>> budget = Budget(460_020, "a.gif", container="gif", clock=lambda: next(processor))
    >>> budget.decoded(1920 * 1080, Fraction(100))
    Traceback (most recent call last):
    ...
    capstone_dagster.analysis.errors.UndecodableVideo: a.gif costs more work than any recording does: ...
    """

    def __init__(
        self,
        file_bytes: int,
        name: str,
        *,
        container: str,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        """`container` is FFmpeg's name of the format; `clock` says how long this process has computed."""
        self._file_bytes = file_bytes
        self._name = name
        self._clock = clock
        self._started = clock()
        per_byte = _SECONDS_PER_BYTE_OF_ANIMATION if container in _ANIMATIONS else _SECONDS_PER_BYTE
        self._seconds_of_bytes = per_byte * file_bytes
        self._bytes = 0
        self._pixels = 0

    def read(self, size: int) -> None:
        """Count the bytes of a packet."""
        self._bytes += size
        if self._bytes > _TIMES_READ * self._file_bytes + _BYTES_FREE:
            raise self._refusal(
                f"its index names the same bytes again and again ({self._bytes:,} of {self._file_bytes:,})"
            )

    def decoded(self, pixels: int, seconds: Fraction) -> None:
        """Count a frame, and the processor time so far; `seconds` is how far the video has come."""
        self._pixels += pixels
        if self._pixels > _PIXELS_PER_BYTE * self._file_bytes + _PIXELS_FREE:
            raise self._refusal(f"{self._file_bytes:,} bytes became {self._pixels:,} pixels")
        used = self._clock() - self._started
        most = _SECONDS_FREE + min(self._seconds_of_bytes, _SECONDS_PER_SECOND * float(seconds))
        if used > most:
            raise self._refusal(
                f"{self._file_bytes:,} bytes took {used:.0f} processor seconds for {float(seconds):.1f} s of "
                "video"
            )

    def _refusal(self, what: str) -> UndecodableVideo:
        return UndecodableVideo(
            f"{self._name} costs more work than any recording does: {what}. It is damaged, or made to cost; "
            "convert it with FFmpeg and upload that."
        )


def check_memory(name: str) -> None:
    """Finds out why there was no memory: because of what a file asks for at once, its sum, or the machine.

    Raises:
        UndecodableVideo: this process has all that decoding may take.
        MemoryError: the machine has none left.
    """
    if _there_is_memory():
        return  # a broken file asked for more at once than FFmpeg gives
    resource.setrlimit(resource.RLIMIT_DATA, (resource.getrlimit(resource.RLIMIT_DATA)[1],) * 2)
    if not _there_is_memory():
        raise MemoryError("The machine has no memory left to decode a video in.")
    raise UndecodableVideo(
        f"{name} takes more than {MOST_MEMORY >> 30} GiB of memory to decode, which no recording does. "
        "Convert it with FFmpeg and upload that."
    )


def _there_is_memory() -> bool:
    try:
        mmap.mmap(-1, SOME_MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, ValueError):
        return False
    return True


def renew_time_limit() -> None:
    """Lets this process be ended by SIGXCPU where it computes for long without a frame.

    To be called after each frame: neither Python nor a signal's handler gets a word in while a decoder loops.
    """
    soft = round(time.process_time()) + _SECONDS_STALLED
    limit, most = resource.getrlimit(resource.RLIMIT_CPU)
    if soft != limit and (most == resource.RLIM_INFINITY or soft <= most):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, most))
