"""How pictures of one size are fitted into what a model sees, exactly as Ultralytics does it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from ..footage.video import Image

PADDING_VALUE = 114
"""The grey beside the picture: what Ultralytics trains with."""


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Scaled to fit with its proportions kept, centred, the rest grey.

    Sizes are pixels. Scaling and its rounding are Ultralytics', because another half pixel gives other boxes.

    Attributes:
        source_height, source_width: of the pictures.
        scaled_height, scaled_width: of the pictures inside the model's input.
        top, left: where they lie in it.
        height, width: of the model's input.
    """

    source_height: int
    source_width: int
    scaled_height: int
    scaled_width: int
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def rectangular(
        cls, source_height: int, source_width: int, *, size: tuple[int, int], stride: int
    ) -> Self:
        """With no more padding than the model's stride asks for: 1080p at 640 px is 384 x 640."""
        scaled_height, scaled_width = _scaled(source_height, source_width, size)
        return cls._centred(
            source_height,
            source_width,
            height=scaled_height + (size[0] - scaled_height) % stride,
            width=scaled_width + (size[1] - scaled_width) % stride,
            scaled_height=scaled_height,
            scaled_width=scaled_width,
        )

    @classmethod
    def fixed(cls, source_height: int, source_width: int, *, size: tuple[int, int]) -> Self:
        """Into (height, width) exactly, for models that take nothing else."""
        scaled_height, scaled_width = _scaled(source_height, source_width, size)
        return cls._centred(
            source_height,
            source_width,
            height=size[0],
            width=size[1],
            scaled_height=scaled_height,
            scaled_width=scaled_width,
        )

    @classmethod
    def _centred(
        cls,
        source_height: int,
        source_width: int,
        *,
        height: int,
        width: int,
        scaled_height: int,
        scaled_width: int,
    ) -> Self:
        # 0.1 decides where half a pixel goes: up and to the left.
        return cls(
            source_height=source_height,
            source_width=source_width,
            scaled_height=scaled_height,
            scaled_width=scaled_width,
            top=round((height - scaled_height) / 2 - 0.1),
            left=round((width - scaled_width) / 2 - 0.1),
            height=height,
            width=width,
        )

    def fit(self, image: Image) -> Image:
        """The (height, width, 3) uint8 input made from one picture, colours in the order they came in."""
        scaled = (
            image
            if image.shape[:2] == (self.scaled_height, self.scaled_width)
            else cv2.resize(image, (self.scaled_width, self.scaled_height), interpolation=self._interpolation)
        )
        bottom = self.height - self.scaled_height - self.top
        right = self.width - self.scaled_width - self.left
        if not (self.top or bottom or self.left or right):
            return np.ascontiguousarray(scaled, dtype=np.uint8)
        return np.asarray(
            cv2.copyMakeBorder(
                scaled,
                self.top,
                bottom,
                self.left,
                right,
                cv2.BORDER_CONSTANT,
                value=(PADDING_VALUE, PADDING_VALUE, PADDING_VALUE),
            ),
            dtype=np.uint8,
        )

    @property
    def _interpolation(self) -> int:
        """Bilinear: at an odd ratio (1080p at 640: 3) the pixel in the middle, which is cheaper to name."""
        down, rest_down = divmod(self.source_height, self.scaled_height)
        across, rest_across = divmod(self.source_width, self.scaled_width)
        odd = down == across and down % 2 == 1 and rest_down == rest_across == 0
        return cv2.INTER_NEAREST_EXACT if odd else cv2.INTER_LINEAR

    def to_source(self, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, 4) float32 xyxy boxes, from pixels of the model's input to pixels of the picture, cut at its
        edges."""
        offset = np.array([self.left, self.top] * 2, dtype=np.float32)
        # Each side was rounded by itself, so each has a scale of its own.
        scale = np.array(
            [self.scaled_width / self.source_width, self.scaled_height / self.source_height] * 2,
            dtype=np.float32,
        )
        limits = np.array([self.source_width, self.source_height] * 2, dtype=np.float32)
        return np.asarray(np.clip((boxes - offset) / scale, np.float32(0), limits), dtype=np.float32)


def model_size(side: int, stride: int) -> int:
    """A side that the model can take: the next multiple of its stride, and no less than one of it."""
    return max(math.ceil(side / stride), 1) * stride


def _scaled(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    ratio = min(size[0] / height, size[1] / width)
    return max(round(height * ratio), 1), max(round(width * ratio), 1)
