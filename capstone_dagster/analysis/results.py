"""What a pass writes and counts, fed with decoded frames and what was found in them."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from .detections import Detections
from .pictures import ContactSheet, Thumbnails
from .settings import AnalysisSettings
from .tables import DETECTIONS_SCHEMA, FRAMES_SCHEMA, TableWriter
from .tracking import UNTRACKED, VideoTracker
from .video import Frame, Image


class Results:
    """Everything a pass writes and counts, fed frame by frame.

    Detections are written one analysed frame late: only then is it known whether a first sighting is a track.
    """

    def __init__(self, out: Path, settings: AnalysisSettings, labels: tuple[str, ...]) -> None:
        self.frames_decoded = self.frames_analyzed = self.detections = 0
        self.last_decoded_ms = self.first_analyzed_ms = self.last_analyzed_ms = 0
        self._out = out
        self._settings = settings
        self._tracker = VideoTracker(settings, labels)
        self._sheet = ContactSheet()
        # A track may come back within the tracker's buffer; after it, its best view is final.
        self._thumbnails = Thumbnails(out / "thumbnails", keep_ms=settings.track_buffer_s * 1000)
        self._waiting: _Analyzed | None = None
        self._tracks_kept: set[int] = set()
        self._spacings: Counter[int] = Counter()
        self._files = ExitStack()

    def __enter__(self) -> Self:
        (self._out / "contact_sheet.jpg").unlink(missing_ok=True)
        self._frames_table = self._files.enter_context(
            TableWriter(self._out / "frames.parquet", FRAMES_SCHEMA)
        )
        self._detections_table = self._files.enter_context(
            TableWriter(self._out / "detections.parquet", DETECTIONS_SCHEMA)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    @property
    def tracks(self) -> int:
        return len(self._tracks_kept)

    @property
    def sample_interval_ms(self) -> float:
        """The median spacing of analysed frames.

        From a count of each spacing that occurred: few values, however long the video.
        """
        total = self._spacings.total()
        if total == 0:
            return 0.0
        ordered = sorted(self._spacings.items())
        cumulated = np.cumsum([count for _, count in ordered])
        middle = [
            ordered[int(np.searchsorted(cumulated, place, side="right"))][0]
            for place in ((total - 1) // 2, total // 2)
        ]
        return sum(middle) / 2

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
        self.frames_decoded += 1
        self.last_decoded_ms = frame.pts_ms
        self.detections += kept

    def finish(self) -> None:
        """Writes what waits; to be called once after the last frame."""
        self._write_waiting()
        self._thumbnails.close()
        self._sheet.write(self._out / "contact_sheet.jpg")

    def _analyzed(self, frame: Frame, image: Image, found: Detections) -> None:
        if self.frames_analyzed == 0:
            self.first_analyzed_ms = frame.pts_ms
        else:
            self._spacings[frame.pts_ms - self.last_analyzed_ms] += 1
        self.frames_analyzed += 1
        self.last_analyzed_ms = frame.pts_ms
        assignment = self._tracker.update(found, image, frame.pts_ms)
        if self._waiting is not None:
            for index, track_id in assignment.confirmed:
                self._waiting.track_ids[index] = track_id
        self._write_waiting()
        self._waiting = _Analyzed(frame.pts_ms, frame.index, image, found, assignment.track_ids)

    def _write_waiting(self) -> None:
        if self._waiting is None:
            return
        frame, self._waiting = self._waiting, None
        # The tracker saw weaker detections too; they helped it to hold on to tracks and are not kept.
        kept = frame.detections.scores >= self._settings.min_score
        detections, track_ids = frame.detections.select(kept), frame.track_ids[kept]
        if len(detections):
            self._detections_table.append(
                {
                    "frame_index": [frame.index] * len(detections),
                    "pts_ms": [frame.pts_ms] * len(detections),
                    "track_id": [
                        None if track_id == UNTRACKED else track_id for track_id in track_ids.tolist()
                    ],
                    "label": [detections.label(index) for index in range(len(detections))],
                    "score": detections.scores.tolist(),
                    **dict(zip(("x1", "y1", "x2", "y2"), detections.boxes.T.tolist(), strict=True)),
                }
            )
        tracked = track_ids != UNTRACKED
        self._tracks_kept.update(track_ids[tracked].tolist())
        self._thumbnails.offer(frame.image, frame.pts_ms, detections.select(tracked), track_ids[tracked])
        self._sheet.offer(frame.image, frame.pts_ms, detections, track_ids)


@dataclass(slots=True, eq=False)
class _Analyzed:
    """An analysed frame on its way to the files."""

    pts_ms: int
    index: int
    image: Image
    detections: Detections
    track_ids: npt.NDArray[np.int32]
