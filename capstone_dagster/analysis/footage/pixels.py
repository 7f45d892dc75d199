"""Decoded frames as arrays: small pictures of luma to see motion by, and upright BGR for the detector."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

Image = npt.NDArray[np.uint8]

# Motion needs no detail: at 320 x 180 a walking person far away still covers tens of pixels. The same size
# for every video makes its values comparable.
LUMA_SIZE = (320, 180)

# Formats whose first plane is luma alone, and how far its values are to be shifted to make 8 bits of them.
# The formats of hardware decoders (p010, p016) are named by their depth, but fill their words from the top.
_LUMA_PLANES: dict[str, tuple[type[np.uint8] | type[np.uint16], int]] = {
    **{f"yuv{chroma}p": (np.uint8, 0) for chroma in ("410", "411", "420", "422", "440", "444")},
    **{f"yuvj{chroma}p": (np.uint8, 0) for chroma in ("411", "420", "422", "440", "444")},
    **dict.fromkeys(("gray", "nv12", "nv21", "nv16", "nv24"), (np.uint8, 0)),
    **{
        f"yuv{chroma}p{bits}le": (np.uint16, bits - 8)
        for bits in (9, 10, 12, 14, 16)
        for chroma in ("420", "422", "444")
    },
    **{f"gray{bits}le": (np.uint16, bits - 8) for bits in (10, 12, 14, 16)},
    **dict.fromkeys(("p010le", "p012le", "p016le", "p210le", "p216le"), (np.uint16, 8)),
}
# Formats with a pixel's colours side by side, 8 bits each (GIF): channels, and OpenCV's way to grey.
_PACKED: dict[str, tuple[int, int]] = {
    "bgr24": (3, cv2.COLOR_BGR2GRAY),
    "rgb24": (3, cv2.COLOR_RGB2GRAY),
    **dict.fromkeys(("bgra", "bgr0"), (4, cv2.COLOR_BGRA2GRAY)),
    **dict.fromkeys(("rgba", "rgb0"), (4, cv2.COLOR_RGBA2GRAY)),
}

# The limited range of video: black is 16, white 235 (ITU-R BT.601 and BT.709).
_LIMITED_SPAN, _FULL_SPAN = 219.0, 255.0

# What OpenCV's reader asks of the same library, so that colours are the same, value for value.
_INTERPOLATION = Interpolation.BICUBIC
# FFmpeg's threads save a third of the 0.6 ms that a frame of 1920 x 1080 takes, for more work in all; and
# where widths are odd, one thread's last values of a line may fall into another's first (FFmpeg 8.1).
_THREADS = 1

# OpenCV's name for mirroring left to right, top to bottom, and both.
_FLIP_CODES = {(True, False): 1, (False, True): 0, (True, True): -1}

# Ratios that occur lie between 1 and 32:15 (half-width 16:9 television), or the inverse; what is far beyond
# is a mistake in the file, and would ask for a picture of any size. Less than 1 % nobody sees.
_STRANGEST_ASPECT = 4
_VISIBLE_ASPECT = Fraction(1, 100)


@dataclass(frozen=True, slots=True, eq=False)
class Luma:
    """A frame's luma, small.

    Attributes:
        image: `LUMA_SIZE[::-1]` uint8 as coded, black at 16 where the range is limited.
        span: how far white is from black.
    """

    image: Image
    span: float

    def difference(self, other: Luma) -> float:
        """The mean absolute difference, as a share of white (0-1)."""
        distance = cv2.norm(self.image, other.image, cv2.NORM_L1) / (self.image.size * self.span)
        return min(1.0, float(distance))  # footroom and headroom lie beyond black and white


class LumaReader:
    """Takes luma from the decoder's own first plane where there is one, else from a conversion."""

    def __init__(self) -> None:
        self._to_gray = VideoReformatter()

    def read(self, frame: av.VideoFrame) -> Luma:
        """The frame's luma; interlaced and rotated frames are taken as they are coded."""
        name = frame.format.name
        known = _LUMA_PLANES.get(name)
        if frame.planes[0].line_size > 0 and name in _PACKED:
            channels, to_gray = _PACKED[name]
            lines = np.frombuffer(memoryview(frame.planes[0]), np.uint8).reshape(frame.height, -1)
            pixels = lines[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
            gray_pixels = cv2.cvtColor(cv2.resize(pixels, LUMA_SIZE), to_gray)
            return Luma(cast(Image, gray_pixels), _FULL_SPAN)
        if known is None or frame.planes[0].line_size <= 0:  # some codecs store their lines upside down
            gray = self._to_gray.reformat(frame, *LUMA_SIZE, "gray", threads=_THREADS)
            return Luma(cast(Image, gray.to_ndarray()), _FULL_SPAN)
        dtype, shift = known
        plane = frame.planes[0]
        rows = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width]
        # Four neighbours each are averaged: the conversion by FFmpeg, which averages all, takes 7 times as
        # long.
        small = cv2.resize(rows, LUMA_SIZE, interpolation=cv2.INTER_LINEAR)
        if shift:
            small >>= shift
        full = frame.color_range == ColorRange.JPEG or name.startswith(("yuvj", "gray"))
        return Luma(
            small.astype(np.uint8) if shift else cast(Image, small), _FULL_SPAN if full else _LIMITED_SPAN
        )


@dataclass(frozen=True, slots=True)
class Orientation:
    """How coded pictures become upright ones: transposed first, then mirrored.

    Attributes:
        transposed: rows become columns.
        flipped_x, flipped_y: mirrored left to right, top to bottom.
    """

    transposed: bool = False
    flipped_x: bool = False
    flipped_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """By the frame's display matrix; the nearest of the eight where it turns by some degrees."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        # Points of the coded picture (p, q) are shown at (a p + c q, b p + d q).
        a, b, _, c, d = struct.unpack_from("=5i", cast(SideData, matrix))
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Of the upright picture, by the coded one's."""
        return (height, width) if self.transposed else (width, height)

    def apply(self, image: Image) -> Image:
        """The upright picture."""
        if self.transposed:
            image = cast(Image, cv2.transpose(image))
        if self.flipped_x or self.flipped_y:
            image = cast(Image, cv2.flip(image, _FLIP_CODES[self.flipped_x, self.flipped_y]))
        return image


class BgrReader:
    """Makes upright pictures with square pixels, all of the size that the first frame has.

    Attributes:
        width, height: of the pictures, in pixels.
        size_changes: how often frames began to have another size, shape or orientation.
    """

    def __init__(self, first: av.VideoFrame, pixel_aspect: Fraction | None) -> None:
        """`pixel_aspect` is a coded pixel's width by its height; None where the file says nothing."""
        self._seen: dict[tuple[int, int, int, Fraction | None], _Geometry] = {}
        self._geometry = self._geometry_of(first, pixel_aspect)
        self.width, self.height = self._geometry.upright
        self.size_changes = 0
        self._to_bgr = VideoReformatter()

    def read(self, frame: av.VideoFrame, pixel_aspect: Fraction | None, canvas: Image | None = None) -> Image:
        """(height, width, 3) uint8 BGR, in `canvas` if there is one.

        A picture of another shape than the first is scaled to fit, in the middle of black, so that nobody is
        squeezed and boxes stay comparable.
        """
        geometry = self._geometry_of(frame, pixel_aspect)
        if geometry != self._geometry:
            self._geometry = geometry
            self.size_changes += 1
        width, height = geometry.upright
        scale = min(self.width / width, self.height / height)
        fitted = (
            (self.width, self.height)
            if (width, height) == (self.width, self.height)
            else (max(1, round(width * scale)), max(1, round(height * scale)))
        )
        coded = geometry.orientation.size(*fitted)
        converted = self._to_bgr.reformat(
            frame, *coded, "bgr24", interpolation=_INTERPOLATION, threads=_THREADS
        )
        image = geometry.orientation.apply(cast(Image, converted.to_ndarray()))
        if canvas is None:
            canvas = np.empty((self.height, self.width, 3), np.uint8)
        left, top = (self.width - fitted[0]) // 2, (self.height - fitted[1]) // 2
        if left or top:
            canvas[:] = 0
        canvas[top : top + fitted[1], left : left + fitted[0]] = image
        return canvas

    def _geometry_of(self, frame: av.VideoFrame, pixel_aspect: Fraction | None) -> _Geometry:
        # A frame whose side data was read lives until the garbage collector finds it: read it seldom.
        key = frame.width, frame.height, frame.rotation, pixel_aspect
        if key not in self._seen:
            self._seen[key] = _Geometry.of(frame, pixel_aspect)
        return self._seen[key]


@dataclass(frozen=True, slots=True)
class _Geometry:
    """What decides how a frame is shown: coded size with square pixels, and orientation."""

    square: tuple[int, int]
    orientation: Orientation

    @classmethod
    def of(cls, frame: av.VideoFrame, pixel_aspect: Fraction | None) -> _Geometry:
        return cls(displayed_size(frame.width, frame.height, pixel_aspect), Orientation.of(frame))

    @property
    def upright(self) -> tuple[int, int]:
        return self.orientation.size(*self.square)


def displayed_size(width: int, height: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """The size with square pixels: the short side of a pixel grows, so that no detail is lost."""
    if not pixel_aspect or not 1 / _STRANGEST_ASPECT <= pixel_aspect <= _STRANGEST_ASPECT:
        return width, height
    if abs(pixel_aspect - 1) < _VISIBLE_ASPECT:
        return width, height
    if pixel_aspect > 1:
        return max(1, round(width * pixel_aspect)), height
    return width, max(1, round(height / pixel_aspect))
