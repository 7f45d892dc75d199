"""One column-wise value for the detections of one picture, the currency of this library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one picture.

    Attributes:
        boxes: (n, 4) float32, xyxy in pixels of the picture.
        scores: (n,) float32, 0-1.
        label_ids: (n,) int32, each an index into `names`.
        names: the labels that can occur.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    label_ids: npt.NDArray[np.int32]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for field, array, dtype, shape in (
            ("boxes", self.boxes, np.float32, (len(self.scores), 4)),
            ("scores", self.scores, np.float32, (len(self.scores),)),
            ("label_ids", self.label_ids, np.int32, (len(self.scores),)),
        ):
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"{field} must be {np.dtype(dtype)} of shape {shape}, but is {array.dtype} {array.shape}"
                )
        if len(self) and (self.label_ids.min() < 0 or self.label_ids.max() >= len(self.names)):
            raise ValueError(f"label_ids must index {self.names!r}, but are {self.label_ids.tolist()}")

    @classmethod
    def of(
        cls,
        boxes: npt.ArrayLike,
        scores: npt.ArrayLike,
        label_ids: npt.ArrayLike,
        names: Sequence[str],
    ) -> Self:
        """From anything array-like, an empty list included."""
        return cls(
            np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
            np.asarray(scores, dtype=np.float32).reshape(-1),
            np.asarray(label_ids, dtype=np.int32).reshape(-1),
            tuple(names),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"Detections({len(self)} of {self.names})"

    def select(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Detections:
        """Those that a mask or a list of positions picks."""
        return Detections(self.boxes[which], self.scores[which], self.label_ids[which], self.names)

    def label(self, index: int) -> str:
        return self.names[int(self.label_ids[index])]

    def clipped(self, width: int, height: int) -> Detections:
        """With boxes cut at the picture's edges; boxes of which nothing remains are dropped."""
        limits = np.array([width, height, width, height], dtype=np.float32)
        boxes = np.clip(self.boxes, np.float32(0), limits)
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Detections(boxes[inside], self.scores[inside], self.label_ids[inside], self.names)
