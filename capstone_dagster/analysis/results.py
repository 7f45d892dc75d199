"""Collects what a pass writes and counts, from decoded frames and their detections."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from .detections import Detections
from .footage.sampling import HEARTBEAT_S
from .footage.video import Frame, Image
from .pictures import ContactSheet, Thumbnails
from .settings import AnalysisSettings
from .tables import DETECTIONS_SCHEMA, FRAMES_SCHEMA, TableWriter
from .tracking.video_tracker import UNTRACKED, VideoTracker

# Holds the detections until the end, when it is known which tracklets belong to one visit.
_TRACKLETS = "tracklets.parquet"
# Includes the events: those of an earlier pass do not belong to a new one.
_RESULTS = ("frames.parquet", "detections.parquet", "events.parquet", "contact_sheet.jpg")
_ROWS_AT_ONCE = 1024

# Analysed frames further apart than half a heartbeat had no change between them.
_CALM_MS = float(HEARTBEAT_S * 1000) / 2


class Results:
    """Everything that a pass writes and counts, frame by frame.

    Detections are first written with the numbers of their tracklets. At the end, when it is known which
    tracklets belong to one visit, they are rewritten with visit numbers, a few thousand rows at a time.
    """

    def __init__(self, out: Path, settings: AnalysisSettings, labels: tuple[str, ...]) -> None:
        self.frames_decoded = self.frames_analyzed = self.detections = self.tracks = 0
        self.first_decoded_ms = self.last_decoded_ms = self.first_analyzed_ms = self.last_analyzed_ms = 0
        self._out = out
        self._settings = settings
        self._tracker = VideoTracker(settings, labels)
        self._sheet = ContactSheet()
        # After the tracker's buffer a tracklet cannot continue, and its best view is final.
        self._thumbnails = Thumbnails(out / "thumbnails", keep_ms=settings.track_buffer_s * 1000)
        self._spacings: Counter[int] = Counter()
        self._files = ExitStack()

    def __enter__(self) -> Self:
        # If this pass fails, files of an earlier one must not count as its results.
        for name in _RESULTS:
            (self._out / name).unlink(missing_ok=True)
        self._files.callback((self._out / _TRACKLETS).unlink, missing_ok=True)
        self._files.callback(self._thumbnails.discard)
        self._frames_table = self._files.enter_context(
            TableWriter(self._out / "frames.parquet", FRAMES_SCHEMA)
        )
        self._detections_table = self._files.enter_context(
            TableWriter(self._out / "detections.parquet", DETECTIONS_SCHEMA)
        )
        self._tracklets = ExitStack()
        self._files.push(self._tracklets)
        self._tracklets_table = self._tracklets.enter_context(
            TableWriter(self._out / _TRACKLETS, DETECTIONS_SCHEMA)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    @property
    def sample_interval_ms(self) -> float:
        """The median spacing of analysed frames; with the motion gate of those while something moved.

        From a count of each spacing that occurred: few values, however long the video.
        """
        # What the gate leaves out is no coarser sampling: when nothing changes there is nothing to see.
        regular = {spacing: count for spacing, count in self._spacings.items() if spacing < _CALM_MS}
        ordered = sorted((regular if self._settings.motion_gate and regular else self._spacings).items())
        total = sum(count for _, count in ordered)
        if total == 0:
            return 0.0
        cumulated = np.cumsum([count for _, count in ordered])
        middle = [
            ordered[int(np.searchsorted(cumulated, place, side="right"))][0]
            for place in ((total - 1) // 2, total // 2)
        ]
        return sum(middle) / 2

    @property
    def fps(self) -> float | None:
        """Decoded frames per second, by their times; None for a single moment."""
        span_ms = self.last_decoded_ms - self.first_decoded_ms
        return (self.frames_decoded - 1) * 1000 / span_ms if span_ms else None

    @property
    def longest_interval_ms(self) -> float:
        """How far apart analysed frames regularly are at most: the heartbeat of the motion gate, if on."""
        heartbeat_ms = float(HEARTBEAT_S * 1000) if self._settings.motion_gate else 0.0
        return max(self.sample_interval_ms, heartbeat_ms)

    def add(self, frame: Frame, found: Detections | None) -> None:
        """The next decoded frame, with its detections if it was analysed."""
        kept = 0
        if frame.image is not None and found is not None:
            height, width = frame.image.shape[:2]
            found = found.clipped(width, height)
            kept = int((found.scores >= self._settings.min_score).sum())
            self._analyzed(frame, frame.image, found)
        self._frames_table.append(
            {
                "frame_index": [frame.index],
                "pts_ms": [frame.pts_ms],
                "motion": [frame.motion],
                "analyzed": [frame.image is not None],
                "detections": [kept],
            }
        )
        if self.frames_decoded == 0:
            self.first_decoded_ms = frame.pts_ms
        self.frames_decoded += 1
        self.last_decoded_ms = frame.pts_ms
        self.detections += kept

    def finish(self) -> None:
        """Joins tracklets to visits and writes what waits; to be called once after the last frame.

        `tracks`, the number of visits, is known from here on.
        """
        visits = self._tracker.finish()
        self.tracks = int(visits.max(initial=0))
        self._tracklets.close()
        with pq.ParquetFile(self._out / _TRACKLETS) as file:
            for rows in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                columns = rows.to_pydict()
                columns["track_id"] = _visits_of(columns["track_id"], visits)
                self._detections_table.append(columns)
        self._thumbnails.close(visits)
        self._sheet.write(self._out / "contact_sheet.jpg", visits)

    def _analyzed(self, frame: Frame, image: Image, found: Detections) -> None:
        if self.frames_analyzed == 0:
            self.first_analyzed_ms = frame.pts_ms
        else:
            self._spacings[frame.pts_ms - self.last_analyzed_ms] += 1
        self.frames_analyzed += 1
        self.last_analyzed_ms = frame.pts_ms
        tracklets = self._tracker.update(found, image, frame.pts_ms)
        # The tracker saw weaker detections too; they helped it to hold on to tracks and are not kept.
        kept = found.scores >= self._settings.min_score
        detections, tracklets = found.select(kept), tracklets[kept]
        if len(detections):
            self._tracklets_table.append(
                {
                    "frame_index": [frame.index] * len(detections),
                    "pts_ms": [frame.pts_ms] * len(detections),
                    "track_id": tracklets.tolist(),
                    "label": [detections.label(index) for index in range(len(detections))],
                    "score": detections.scores.tolist(),
                    **dict(zip(("x1", "y1", "x2", "y2"), detections.boxes.T.tolist(), strict=True)),
                }
            )
        tracked = tracklets != UNTRACKED
        self._thumbnails.offer(image, frame.pts_ms, detections.select(tracked), tracklets[tracked])
        self._sheet.offer(image, frame.pts_ms, detections, tracklets)


def _visits_of(tracklets: list[int], visits: npt.NDArray[np.int32]) -> list[int | None]:
    """The visit of each tracklet, counted from 1; None for what belongs to none."""
    numbers = np.array(tracklets, dtype=np.int64)
    found = np.where(numbers > 0, np.append(visits, UNTRACKED)[numbers - 1], UNTRACKED)
    return [None if visit == UNTRACKED else visit for visit in found.tolist()]
