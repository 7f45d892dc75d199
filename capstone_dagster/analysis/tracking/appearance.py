"""A cheap description of an object's looks: the colours of the upper and of the lower part of its box."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ..footage.video import Image

# Points looked at in each box: enough for a histogram, whatever the size of the box. The outer parts of a box
# show what is behind the object.
_ROWS = np.linspace(0.12, 0.88, 24)
_COLUMNS = np.linspace(0.28, 0.72, 8)

# Colours by hue where there is one, by brightness where there is none: so that shadow matters little.
_HUES, _GREYS = 8, 6
_BINS = _HUES + _GREYS
_COLOURFUL = 70  # saturation and brightness (0-255) from which a hue can be trusted
_DARK = 50

LENGTH = 2 * _BINS

# See `evidence`.
_SLOPE, _UNDECIDED, _LEAST, _MOST = 10.0, 0.82, -2.5, 1.5


def describe(image: Image, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n, `LENGTH`) float32, each of length 1: the product of two is their likeness, 0 to 1.

    They are roots of histograms, so that the product is Bhattacharyya's coefficient.
    """
    if len(boxes) == 0:
        return np.zeros((0, LENGTH), dtype=np.float32)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = boxes.T
    rows = np.clip(y1[:, None] + _ROWS * (y2 - y1)[:, None], 0, height - 1).astype(np.intp)
    columns = np.clip(x1[:, None] + _COLUMNS * (x2 - x1)[:, None], 0, width - 1).astype(np.intp)
    points = image[rows[:, :, None], columns[:, None, :]]
    hsv = cv2.cvtColor(points.reshape(len(boxes), -1, 3), cv2.COLOR_BGR2HSV_FULL)
    hue, saturation, value = (hsv[..., channel].astype(np.intp) for channel in range(3))
    colourful = (saturation >= _COLOURFUL) & (value >= _DARK)
    bins = np.where(colourful, hue * _HUES // 256, _HUES + value * _GREYS // 256)
    bins[:, bins.shape[1] // 2 :] += _BINS
    bins += LENGTH * np.arange(len(boxes))[:, None]
    counts = np.bincount(bins.ravel(), minlength=LENGTH * len(boxes)).reshape(len(boxes), LENGTH)
    looks: npt.NDArray[np.float32] = np.sqrt(counts / bins.shape[1]).astype(np.float32)
    return looks


def evidence(likeness: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Nats that likenesses, 0 to 1, speak for one object rather than two.

    A straight line through what real people's likenesses say, on whom it was measured: of one person half a
    second to four seconds apart, and of two people in one clip, 0.95 occurs e^1.8 times as often for one,
    0.85 e^-0.5 times, 0.65 e^-2 times. Flatter than that, because light differs more across a gap and many
    wear the same.
    """
    return np.clip(_SLOPE * (np.asarray(likeness, dtype=np.float64) - _UNDECIDED), _LEAST, _MOST)
