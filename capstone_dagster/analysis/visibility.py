"""Measures how visible a video's content is, from stored files; nothing is decoded again."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .footage.video import Image
from .pictures import decoded, sheet_tiles

# Side in pixels of the box filter that the measure uses; its authors use nine.
_BLUR_SIDE = 9


@dataclass(frozen=True, slots=True)
class Visibility:
    """Medians over the pictures of a contact sheet.

    Attributes:
        brightness: 95th percentile of luma, 0–1: low in the dark.
        contrast: standard deviation of luma, 0–1: low if the lens is covered or dazzled.
        blur: 0 (sharp) to 1 (blurred): how little additional blurring changes. Crete, Dolmiere, Ladret and
            Nicolas: The blur effect, SPIE 6492 (2007). Measured at tile size, so slight defocus that is
            visible only at full size counts as sharp.
    """

    brightness: float
    contrast: float
    blur: float


def look_at_sheet(jpeg: bytes, *, width: int, height: int, frames: int) -> Visibility:
    """Measure a video by its contact sheet.

    Args:
        width, height: size of the video's frames, in pixels.
        frames: number of analysed frames.

    Raises:
        ValueError: the picture is not the contact sheet of such a video.

    >>> from pathlib import Path
    >>> sheet = Path("results/contact_sheet.jpg").read_bytes()
    >>> look_at_sheet(sheet, width=320, height=180, frames=15).brightness < 0.5
    True
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
    """The fraction of decoded frames that exactly repeat the previous one, 0–1; 0 without frames.

    In a still scene a codec leaves a little of the camera's noise, so only a frozen picture repeats exactly.

    >>> still_share(pa.table({"motion": [0.0, 0.02, 0.0, 0.01, 0.03]}))
    0.25
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
    # Without any edge nothing can be blurred: then contrast is what is low.
    return 1 - float(np.maximum(0, before - after).sum()) / total if total else 0.0
