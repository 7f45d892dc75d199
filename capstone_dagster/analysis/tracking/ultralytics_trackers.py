"""Ultralytics' unmodified ByteTrack and BoT-SORT, as alternatives and for comparison."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..detections import Detections
from ..footage.video import Image
from ..settings import AnalysisSettings
from .motion import MotionModel, measured
from .stitching import UNTRACKED, Stitcher, Tracklet

_UNUSED = MotionModel(speed=1, resize=1, memory_s=1, place_noise=1, extent_noise=1)


class UltralyticsTracker:
    """Tracks of one label; a track is a tracklet that nothing is joined to.

    These trackers count frames instead of time. So the number of frames for which a lost track is kept is
    set for each picture, to match `track_buffer_s` at any, even a varying, sampling rate.
    """

    def __init__(self, settings: AnalysisSettings, stitcher: Stitcher) -> None:
        self._stitcher = stitcher
        self._buffer_ms = settings.track_buffer_s * 1000
        self._recent_pts_ms: deque[int] = deque()
        self._tracker = new_tracker(
            "botsort" if settings.tracker == "botsort" else "bytetrack", _options(settings)
        )
        self._tracklets: dict[int, Tracklet] = {}

    def update(self, detections: Detections, image: Image | None, pts_ms: int) -> npt.NDArray[np.int32]:
        """See `LabelTracker`."""
        while self._recent_pts_ms and self._recent_pts_ms[0] < pts_ms - self._buffer_ms:
            self._recent_pts_ms.popleft()
        self._tracker.max_frames_lost = max(1, len(self._recent_pts_ms))
        self._recent_pts_ms.append(pts_ms)
        rows = self._tracker.update(TrackerInput(detections), image)
        found = [(int(row[4]), int(row[7])) for row in rows]  # x1, y1, x2, y2, id, score, class, index
        # First sightings, which the tracker itself believes only when there is a second.
        found += [
            (track.track_id, int(track.idx))
            for track in self._tracker.tracked_stracks
            if not track.is_activated
        ]
        tracklets = np.full(len(detections), UNTRACKED, dtype=np.int32)
        places = measured(detections.boxes)
        for own_id, position in found:
            if own_id not in self._tracklets:
                self._tracklets[own_id] = self._stitcher.begin(_UNUSED, pts_ms, None)
            tracklet = self._tracklets[own_id]
            tracklet.saw(pts_ms, places[position], places[position], belief=1.0)
            tracklets[position] = tracklet.number
        alive = {track.track_id for track in (*self._tracker.tracked_stracks, *self._tracker.lost_stracks)}
        for own_id in [own_id for own_id in self._tracklets if own_id not in alive]:
            self._stitcher.end(self._tracklets.pop(own_id), None)
        return tracklets

    def finish(self) -> None:
        """See `LabelTracker`."""
        for tracklet in self._tracklets.values():
            self._stitcher.end(tracklet, None)
        self._tracklets.clear()


class TrackerInput:
    """Detections as Ultralytics' trackers read them: `conf`, `cls`, `xywh`, `xyxy`, indexed by a mask."""

    def __init__(self, detections: Detections) -> None:
        self._detections = detections
        self.conf = detections.scores
        self.cls = detections.label_ids
        self.xyxy = detections.boxes
        self.xywh = measured(detections.boxes).astype(np.float32)

    def __len__(self) -> int:
        return len(self._detections)

    def __getitem__(self, which: npt.NDArray[np.bool_]) -> TrackerInput:
        return TrackerInput(self._detections.select(which))


def new_tracker(kind: Literal["bytetrack", "botsort"], options: object) -> Any:
    """Ultralytics' tracker; `options` has the attributes that its YAML files list."""
    from ..detection.checkpoint import import_ultralytics, require_pytorch

    require_pytorch(f"The tracker {kind}")
    import_ultralytics()
    from ultralytics.trackers.bot_sort import BOTSORT
    from ultralytics.trackers.byte_tracker import BYTETracker

    return (BOTSORT if kind == "botsort" else BYTETracker)(options)


def _options(settings: AnalysisSettings) -> object:
    # Ultralytics' own defaults, except that what is worth keeping is worth starting a track with.
    return SimpleNamespace(
        track_high_thresh=settings.min_score,
        track_low_thresh=settings.weak_score,
        new_track_thresh=settings.min_score,
        track_buffer=1,  # in frames; set in seconds for each picture, above
        match_thresh=0.8,
        fuse_score=True,
        gmc_method="sparseOptFlow",
        proximity_thresh=0.5,
        appearance_thresh=0.8,
        with_reid=False,
        model="auto",
    )
