"""What is known of a video, and of each of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from .pixels import Image as Image

Decoder = Literal["software", "nvdec"]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file says of itself, checked against its first frame.

    Attributes:
        duration_ms: from the container's start to its stated end, which may be wrong; None where it states
            none.
        width, height: in pixels as displayed: upright (mirrored and turned as the display matrix says) and
            with square pixels (the side along which coded pixels are short is stretched). Frames and boxes
            are in these.
        fps: mean frames per second as stated; None where it says nothing.
        codec: FFmpeg's name of the codec, such as `h264`.
        creation_time: when the recording began, by the container's tags; None where they are missing or
            impossible.
        creation_time_rule: which tag said so, and how it was read, as in `footage.filmed`.
        frame_count: as stated by the container; None where it says nothing.
        track: of several video tracks, which one is analysed and why; None where there is one.
    """

    duration_ms: int | None
    width: int
    height: int
    fps: float | None
    codec: str
    creation_time: datetime | None
    creation_time_rule: str | None
    frame_count: int | None
    track: str | None


@dataclass(frozen=True, slots=True)
class Damage:
    """What was wrong with a file, as far as it was read.

    Attributes:
        truncated: it ended before what it promises, or in an error.
        decode_errors: how often its container or its codec could not be read on.
        corrupt_frames: frames whose pictures the decoder guessed in part.
        size_changes: how often frames began to have another size or shape.
    """

    truncated: bool = False
    decode_errors: int = 0
    corrupt_frames: int = 0
    size_changes: int = 0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Frame:
    """One decoded frame.

    >>> Frame(index=3, pts_ms=120, motion=0.01, image=None)
    Frame(index=3, pts_ms=120, motion=0.010, image=None)

    Attributes:
        index: its place in presentation order, from 0, counting every decoded frame.
        pts_ms: milliseconds since the container's start, by presentation timestamps; never decreasing.
        motion: mean absolute difference of luma to the frame before, 0-1; 0 for the first frame.
        image: (height, width, 3) uint8 BGR, upright; None where the frame was not sampled.
    """

    index: int
    pts_ms: int
    motion: float
    image: Image | None

    def __repr__(self) -> str:
        shape = None if self.image is None else "×".join(str(side) for side in self.image.shape)
        return f"Frame(index={self.index}, pts_ms={self.pts_ms}, motion={self.motion:.3f}, image={shape})"
