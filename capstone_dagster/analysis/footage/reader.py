"""Reads one video: what it is, its frames, and what was wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from .decoding import Decoder, VideoFile
from .video import Damage, Frame, VideoInfo


def probe(path: Path) -> VideoInfo:
    """What a file says of itself. Decodes one frame, so a file that passes is a video.

    Raises:
        UndecodableVideo: it is none; the message says why.
    """
    with VideoReader(path) as video:
        return video.info


def frames(path: Path, *, sample_fps: float, motion_gate: bool = False) -> Iterator[Frame]:
    """Every decoded frame in order of presentation, with its image where `Sampling` takes it."""
    with VideoReader(path) as video:
        yield from video.frames(sample_fps=sample_fps, motion_gate=motion_gate)


class VideoReader:
    """One video file, open for one pass over its frames.

    Attributes:
        info: what the file says of itself.
        decoder: what decodes.
    """

    def __init__(self, path: Path, *, name: str | None = None, hardware: bool = False) -> None:
        """Opens the file and decodes its first frame.

        Args:
            name: what messages call the file; by default its own name.
            hardware: prefer NVIDIA's decoder where the machine has one that reads the codec.

        Raises:
            UndecodableVideo: there is no frame; the message says why.
        """
        self._file = VideoFile(Path(path), name, hardware=hardware)
        self.info = self._file.info
        self.decoder: Decoder = self._file.decoder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def frames(self, *, sample_fps: float, motion_gate: bool = False) -> Iterator[Frame]:
        """Every frame from the first on; a truncated tail ends the stream. To be iterated once."""
        return self._file.frames(sample_fps=sample_fps, motion_gate=motion_gate)

    @property
    def damage(self) -> Damage:
        """What was wrong with the file, as far as its frames were read."""
        return self._file.damage

    @property
    def end_ms(self) -> int:
        """Where the frame read last ends, in milliseconds from the container's start."""
        return self._file.end_ms
