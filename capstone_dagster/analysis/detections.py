"""The detections of one picture, column by column: the value that this library passes around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was detected in one picture.

    >>> found = Detections.of([[0, 0, 9, 9], [5, 5, 40, 9]], [0.9, 0.4], [0, 1], ("person", "face"))
    >>> found
    Detections(2 of ('person', 'face'))
    >>> found.select(found.scores > 0.5).label(0)
    'person'
    >>> found.clipped(width=20, height=20).boxes[1].tolist()
    [5.0, 5.0, 20.0, 9.0]

    Attributes:
        boxes: (n, 4) float32, xyxy in pixels of the picture.
        scores: (n,) float32, 0-1.
        label_ids: (n,) int32, indices into `names`.
        names: all possible labels.
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
        """From array-likes; an empty list is allowed."""
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
        """The detections at these positions, or where a mask is true."""
        return Detections(self.boxes[which], self.scores[which], self.label_ids[which], self.names)

    def label(self, index: int) -> str:
        return self.names[int(self.label_ids[index])]

    def clipped(self, width: int, height: int) -> Detections:
        """With boxes cut at the picture's edges; boxes outside it are dropped."""
        limits = np.array([width, height, width, height], dtype=np.float32)
        boxes = np.clip(self.boxes, np.float32(0), limits)
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Detections(boxes[inside], self.scores[inside], self.label_ids[inside], self.names)
