"""Which of a model's classes are of interest, and by which numbers they go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..errors import InvalidAnalysisSettings


class LabelMap:
    """The labels of interest among a model's classes.

    Attributes:
        class_ids: their numbers in the model, ascending.
        labels: their names, in the same order: what a `Detections` calls `names`.
        missing: the names asked for that the model does not have.
    """

    def __init__(self, names: Mapping[int, str], wanted: tuple[str, ...], *, model: str) -> None:
        """Takes the model's names by class number.

        Raises:
            InvalidAnalysisSettings: the model has none of the wanted names.
        """
        self.class_ids = tuple(sorted(number for number, name in names.items() if name in wanted))
        self.labels = tuple(names[number] for number in self.class_ids)
        self.missing = tuple(name for name in wanted if name not in self.labels)
        if not self.labels:
            raise InvalidAnalysisSettings(
                f"labels must name classes of the model {model}, but are {wanted!r}; "
                f"it knows: {', '.join(str(name) for name in names.values())}."
            )
        self.class_count = max(names) + 1
        self._label_ids = np.full(self.class_count, -1, dtype=np.int32)
        self._label_ids[list(self.class_ids)] = np.arange(len(self.labels), dtype=np.int32)

    def label_ids(self, classes: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
        """For each of the model's class numbers an index into `labels`, or -1 for what was not asked for."""
        return self._label_ids[classes]
