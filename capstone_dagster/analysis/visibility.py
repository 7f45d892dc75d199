"""How well there is anything to see in a video, from what its pass has stored: nothing is decoded again."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .footage.video import Image
from .pictures import decoded, sheet_tiles

# Side of the square, in pixels, by whose mean a picture is blurred to see what that takes from it; the
# source of the measure takes nine.
_BLUR_SIDE = 9


@dataclass(frozen=True, slots=True)
class Visibility:
    """What the pictures on a contact sheet are like; the medians of its pictures.

    Attributes:
        brightness: below it lie nineteen in twenty pixels, 0–1: low where all is dark.
        contrast: standard deviation of luma, 0–1: low where the lens is covered or dazzled.
        blur: 0 (sharp) to 1 (blurred): how little blurring takes away. Crete, Dolmiere, Ladret and Nicolas:
            The blur effect, SPIE 6492 (2007). Seen at the size of a tile: what is a little out of focus only
            at full size is sharp here.
    """

    brightness: float
    contrast: float
    blur: float


def look_at_sheet(jpeg: bytes, *, width: int, height: int, frames: int) -> Visibility:
    """Judge a video by its contact sheet.

    Args:
        width, height: of the video's frames, in pixels.
        frames: how many were analysed.

    Raises:
        ValueError: it is not the contact sheet of such a video.
    """
    tiles = [
        cv2.cvtColor(tile, cv2.COLOR_BGR2GRAY)
        for tile in sheet_tiles(decoded(jpeg), width=width, height=height, frames=frames)
    ]
    return Visibility(
        brightness=float(np.median([np.percentile(tile, 95) for tile in tiles])) / 255,
        contrast=float(np.median([tile.std() for tile in tiles])) / 255,
        blur=float(np.median([_blur(tile) for tile in tiles])),
    )


def still_share(frames: pa.Table) -> float:
    """The share of decoded frames that are the one before once more, 0–1; of no frames 0.

    Exactly: where nobody is and nothing moves, a codec leaves of a camera's noise next to nothing, but not
    nothing.
    """
    motion: npt.NDArray[np.float32] = frames["motion"].to_numpy()[1:]
    return float((motion == 0).mean()) if len(motion) else 0.0


def _blur(luma: Image) -> float:
    """The blur of a picture along the axis in which it is worse."""
    picture = luma.astype(np.float32)
    return max(
        _blur_along(picture, cv2.blur(picture, (_BLUR_SIDE, 1)), axis=1),
        _blur_along(picture, cv2.blur(picture, (1, _BLUR_SIDE)), axis=0),
    )


def _blur_along(picture: npt.NDArray[np.float32], blurred: npt.NDArray[np.float32], *, axis: int) -> float:
    before, after = np.abs(np.diff(picture, axis=axis)), np.abs(np.diff(blurred, axis=axis))
    total = float(before.sum())
    # Where there is no edge at all, there is none to be blurred: that is a matter of contrast.
    return 1 - float(np.maximum(0, before - after).sum()) / total if total else 0.0
