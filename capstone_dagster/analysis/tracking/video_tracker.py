"""Joins detections into tracklets picture by picture, and tracklets into visits at the end."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..detections import Detections
from ..footage.video import Image
from ..settings import AnalysisSettings
from .motion import MotionModel
from .motion_tracker import MotionTracker
from .stitching import UNTRACKED, Stitcher
from .ultralytics_trackers import UltralyticsTracker

__all__ = ["UNTRACKED", "LabelTracker", "VideoTracker"]

# People are 1.7 m tall, walk at 0.5 to 1.5 m/s in any direction across the picture, and stop; what else
# cameras are asked for moves no slower in its own lengths. Noise is what is left of a detector's boxes
# around a smooth path, and more, because partly hidden objects have wrong boxes. Both by `bench/accuracy.py
# --worlds`, see there.
_OBJECT = MotionModel(speed=0.5, resize=0.12, memory_s=4.0, place_noise=0.05, extent_noise=0.12)
# A face is a seventh as tall as its person and moves with them; those a camera can see are mostly near and
# slow.
_FACE = MotionModel(speed=1.5, resize=0.3, memory_s=2.0, place_noise=0.08, extent_noise=0.12)
_MODELS = {"face": _FACE}


class LabelTracker(Protocol):
    """Joins the detections of one label into tracklets, and reports their begin and end to a `Stitcher`."""

    def update(self, detections: Detections, image: Image | None, pts_ms: int) -> npt.NDArray[np.int32]:
        """(n,) int32, the tracklet of each detection, or `UNTRACKED`. Call it in order of time."""
        ...

    def finish(self) -> None:
        """End the open tracklets."""
        ...


class VideoTracker:
    """The visits of one video: a tracker for each label, tracklets numbered from 1 over all of them."""

    def __init__(self, settings: AnalysisSettings, names: tuple[str, ...]) -> None:
        self._trackers: list[LabelTracker]
        if settings.tracker == "motion":
            self._stitcher = Stitcher(settings.track_buffer_s * 1000)
            self._trackers = [
                MotionTracker(_MODELS.get(name, _OBJECT), settings, self._stitcher) for name in names
            ]
        else:
            self._stitcher = Stitcher(0)  # they keep lost tracks themselves
            self._trackers = [UltralyticsTracker(settings, self._stitcher) for _ in names]

    def update(self, detections: Detections, image: Image | None, pts_ms: int) -> npt.NDArray[np.int32]:
        """(n,) int32, for each detection its tracklet, counted from 1, or `UNTRACKED`.

        Call it for each analysed picture in order, with everything that the detector reported. Without
        pictures, looks do not count.
        """
        tracklets = np.full(len(detections), UNTRACKED, dtype=np.int32)
        for label_id, tracker in enumerate(self._trackers):
            positions = np.flatnonzero(detections.label_ids == label_id)
            tracklets[positions] = tracker.update(detections.select(positions), image, pts_ms)
        self._stitcher.advance(pts_ms)
        return tracklets

    def finish(self) -> npt.NDArray[np.int32]:
        """(number of tracklets,) int32, for each tracklet its visit, counted from 1, or `UNTRACKED`.

        Visits are numbered in order of their start; tracklets that were hardly seen belong to none.
        """
        for tracker in self._trackers:
            tracker.finish()
        return self._stitcher.finish()
