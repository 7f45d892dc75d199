"""Which decoded frames the detector looks at: by time, and with the motion gate by what changed."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import InvalidAnalysisSettings
from .pixels import LUMA_SIZE, Image, Luma

# Matroska stores whole milliseconds: a frame due at 133.33 ms carries 133, and must not wait for the next
# one.
_TIMESTAMP_ROUNDING = Fraction(1, 1000)

# However calm the picture, a frame is analysed after so long: somebody who stands still is then seen again
# within the five seconds that tracks and events wait for him, even if the detector misses him once.
HEARTBEAT_S = Fraction(2)

# Change is looked for in blocks of 10 x 10 values, which are 60 x 60 pixels of a 1080p frame: a person far
# away fills one or two, a whole frame's mean would not notice him.
_BLOCK = 10
_GRID = (LUMA_SIZE[0] // _BLOCK, LUMA_SIZE[1] // _BLOCK)

# A block has changed when its mean absolute difference is above both. The floor, in values of 8-bit luma,
# is above what compression leaves in a still scene: measured 3.2 at most for noise of up to 5 values in H.264
# (crf 18 and 28, key frames included) and MPEG-4. The factor is above what noise alone does: no block of raw
# noise exceeded 1.45 times the median block, which is this pair of frames' own noise; 2.45 times where a
# coarse codec (crf 38) keeps noise in some blocks and not in others. With both, 5 x 15 values that differ
# from the ground by 15 are seen where noise is 1, by 25 where it is 3.
_FLOOR = 4.0
_TIMES_NOISE = 2.5
# Where the median block differs by more than this, the picture moves as a whole: a camera's noise is less.
_MOST_NOISE = 8.0


class Sampling:
    """Decides which frames to analyse: by a regular clock, and on request only where something changed.

    Each tick of the clock takes one frame at most: the first at or after it. With the motion gate it takes
    the first that differs from the frame analysed last; a tick in which nothing changes takes none. When a
    change ends, one frame more is taken, so that an end is seen as well as a beginning; and one is taken
    every `HEARTBEAT_S` whatever happens.
    """

    def __init__(self, sample_fps: float, *, motion_gate: bool = False) -> None:
        if not (math.isfinite(sample_fps) and sample_fps >= 0):
            raise InvalidAnalysisSettings(
                f"sample_fps must be 0 (every frame) or more, but is {sample_fps!r}."
            )
        # From the decimal the user wrote: binary 0.1 would drift off the frames within an hour.
        self._rate = Fraction(str(sample_fps))
        self._motion_gate = motion_gate
        self._last_tick = -1
        self._last_seconds = Fraction(0)
        self._last_luma: Luma | None = None
        self._moving = False

    def takes(self, seconds: Fraction, luma: Luma) -> bool:
        """Whether to analyse the frame shown at this time; to be asked once for each frame, in order."""
        tick = math.floor((seconds + _TIMESTAMP_ROUNDING) * self._rate)
        if self._rate and tick <= self._last_tick:
            return False
        if self._motion_gate:
            if not self._worth_it(seconds, luma):
                return False
            self._last_seconds, self._last_luma = seconds, luma
        self._last_tick = tick
        return True

    def _worth_it(self, seconds: Fraction, luma: Luma) -> bool:
        if self._last_luma is None:
            return True
        was_moving, self._moving = self._moving, changed(self._last_luma, luma)
        overdue = seconds - self._last_seconds >= HEARTBEAT_S - _TIMESTAMP_ROUNDING
        return self._moving or was_moving or overdue


def changed(before: Luma, after: Luma) -> bool:
    """Whether something in the picture changed, be it in one place only.

    Neither noise nor light that changes everywhere alike counts. An even drift of the exposure never does; a
    lamp that is switched on may, for it casts shadows.
    """
    difference = block_differences(before, after)
    noise = min(_median(difference), _MOST_NOISE)
    return bool(difference.max() > max(_FLOOR, _TIMES_NOISE * noise))


def block_differences(before: Luma, after: Luma) -> npt.NDArray[np.float32]:
    """The mean absolute difference of each block, once the light of the earlier frame is made the later's.

    In values of 8-bit luma as (rows, columns) float32.
    """
    gain, offset = _light(before.image, after.image)
    # Signed differences around 128, so that neither light nor dark is cut off; larger ones need no exactness.
    centred = cv2.addWeighted(after.image, 1.0, before.image, -gain, 128.0 - offset)
    distance = cv2.absdiff(centred, 128.0)
    blocks = cv2.resize(distance.astype(np.float32), _GRID, interpolation=cv2.INTER_AREA)
    return cast(npt.NDArray[np.float32], blocks)


def _light(before: Image, after: Image) -> tuple[float, float]:
    """Gain and offset that turn one picture's light into the other's, by the blocks that agree best."""
    x = cv2.resize(before, _GRID, interpolation=cv2.INTER_AREA).ravel().astype(np.float64)
    y = cv2.resize(after, _GRID, interpolation=cv2.INTER_AREA).ravel().astype(np.float64)
    astray = np.abs(y - x - _median(y - x))
    agree = astray <= _median(astray) + 1.0
    x, y = x[agree], y[agree]
    spread = float(x.var())
    # A gain is only to be had from blocks that differ; an exposure hardly changes more than this in a moment.
    gain = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread > _FLOOR**2 else 1.0
    gain = min(max(gain, 0.5), 2.0)
    return gain, float(y.mean() - gain * x.mean())


def _median(values: npt.NDArray[Any]) -> float:
    """NumPy's own would import masked arrays: a tenth of the time until the decoder's process is ready."""
    first, last = (values.size - 1) // 2, values.size // 2
    return float(np.partition(values.ravel(), (first, last))[first : last + 1].mean())
