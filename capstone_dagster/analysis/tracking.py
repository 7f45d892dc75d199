"""Detections of one picture after the other joined into tracks, by Ultralytics' trackers driven directly."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from .detections import Detections
from .settings import AnalysisSettings
from .video import Image

UNTRACKED = -1


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """What one picture taught about tracks.

    Attributes:
        track_ids: (n,) int32, for each detection its track, or `UNTRACKED`.
        confirmed: pairs (index of a detection in the picture *before*, its track): a track is believed only
            when it is seen twice, and this is how its first sighting is told.
    """

    track_ids: npt.NDArray[np.int32]
    confirmed: tuple[tuple[int, int], ...]


class VideoTracker:
    """The tracks of one video: a tracker for each label, ids unique over all of them, counted from 1.

    The trackers count frames where they mean time; how many frames a lost track is kept is set anew for each
    picture, so that it is `track_buffer_s` of video at any sampling rate, and with varying ones.
    """

    def __init__(self, settings: AnalysisSettings, names: tuple[str, ...]) -> None:
        self._names = names
        self._buffer_ms = settings.track_buffer_s * 1000
        self._recent_pts_ms: deque[int] = deque()
        self._trackers = [_new_tracker(settings) for _ in names]
        self._track_ids: list[dict[int, int]] = [{} for _ in names]
        self._tentative: list[dict[int, int]] = [{} for _ in names]
        self.tracks = 0

    def update(self, detections: Detections, image: Image, pts_ms: int) -> Assignment:
        """To be called for each analysed picture in order, with everything the detector reported."""
        while self._recent_pts_ms and self._recent_pts_ms[0] < pts_ms - self._buffer_ms:
            self._recent_pts_ms.popleft()
        track_ids = np.full(len(detections), UNTRACKED, dtype=np.int32)
        confirmed: list[tuple[int, int]] = []
        for label_id, tracker in enumerate(self._trackers):
            positions = np.flatnonzero(detections.label_ids == label_id)
            tracker.max_frames_lost = max(1, len(self._recent_pts_ms))
            rows = tracker.update(_TrackerInput(detections.select(positions)), image)
            known, tentative = self._track_ids[label_id], self._tentative[label_id]
            for row in rows:  # x1, y1, x2, y2, id, score, class, index
                own_id, position = int(row[4]), int(positions[int(row[7])])
                if own_id not in known:
                    self.tracks += 1
                    known[own_id] = self.tracks
                    if own_id in tentative:
                        confirmed.append((tentative[own_id], known[own_id]))
                track_ids[position] = known[own_id]
            self._tentative[label_id] = {
                track.track_id: int(positions[int(track.idx)])
                for track in tracker.tracked_stracks
                if not track.is_activated
            }
            alive = {track.track_id for track in (*tracker.tracked_stracks, *tracker.lost_stracks)}
            self._track_ids[label_id] = {own_id: known[own_id] for own_id in known if own_id in alive}
        self._recent_pts_ms.append(pts_ms)
        return Assignment(track_ids, tuple(confirmed))


class _TrackerInput:
    """Detections as Ultralytics' trackers read them: `conf`, `cls`, `xywh`, `xyxy`, indexed by a mask."""

    def __init__(self, detections: Detections) -> None:
        self._detections = detections
        self.conf = detections.scores
        self.cls = detections.label_ids
        self.xyxy = detections.boxes
        self.xywh = np.concatenate(
            [
                (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2,
                detections.boxes[:, 2:] - detections.boxes[:, :2],
            ],
            axis=1,
        )

    def __len__(self) -> int:
        return len(self._detections)

    def __getitem__(self, which: npt.NDArray[np.bool_]) -> _TrackerInput:
        return _TrackerInput(self._detections.select(which))


def _new_tracker(settings: AnalysisSettings) -> Any:
    from .yolo import import_ultralytics

    import_ultralytics()
    from ultralytics.trackers.bot_sort import BOTSORT
    from ultralytics.trackers.byte_tracker import BYTETracker

    # Ultralytics' own defaults, except that what is worth keeping is worth starting a track with.
    options = SimpleNamespace(
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
    return BOTSORT(options) if settings.tracker == "botsort" else BYTETracker(options)
