"""The facts that checks judge, read from a pass's stored tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capstone_dagster.analysis import still_share

# A spacing of more than this times the usual one is a gap, in which frames are missing; less is jitter.
_GAP = 1.5
# People who walk through a picture are there for seconds. What lasts less is a glimpse at the edge, or a
# detector that flickers.
SHORT_MS = 1000


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """Facts of `frames.parquet`.

    Attributes:
        rows: decoded frames.
        in_order: they are numbered from 0 without a gap, and no timestamp runs backwards.
        missing: frames that are missing in gaps between timestamps, by the usual spacing.
        analyzed, detections: their counts.
        last_pts_ms: of the last frame; 0 without any.
        still: the share of frames that do not differ from the one before, 0–1.
    """

    rows: int
    in_order: bool
    missing: int
    analyzed: int
    detections: int
    last_pts_ms: int
    still: float

    @classmethod
    def of(cls, frames: pa.Table) -> FrameFacts:
        """From the table."""
        index, pts_ms = _column(frames, "frame_index"), _column(frames, "pts_ms")
        spacings = np.diff(pts_ms)
        usual = float(np.median(spacings)) if len(spacings) else 0.0
        gaps = spacings[spacings > _GAP * usual] if usual > 0 else spacings[:0]
        return cls(
            rows=len(index),
            in_order=bool((index == np.arange(len(index))).all() and (spacings >= 0).all()),
            missing=int((np.round(gaps / usual) - 1).sum()) if len(gaps) else 0,
            analyzed=int(_column(frames, "analyzed").sum()),
            detections=int(_column(frames, "detections").sum(dtype=np.int64)),
            last_pts_ms=int(pts_ms[-1]) if len(pts_ms) else 0,
            still=still_share(frames),
        )


@dataclass(frozen=True, slots=True)
class DetectionFacts:
    """Facts of `detections.parquet`.

    Attributes:
        rows: detections.
        outside: boxes that are empty, or not within the frame.
        out_of_range: scores that are not between the least one kept and 1.
        tracks: tracks that were made.
        short: of these, those that last less than a second.
    """

    rows: int
    outside: int
    out_of_range: int
    tracks: int
    short: int

    @classmethod
    def of(cls, detections: pa.Table, *, width: int, height: int, min_score: float) -> DetectionFacts:
        """From the table; `width` and `height` of the frames in pixels."""
        x1, y1, x2, y2 = (_column(detections, name) for name in ("x1", "y1", "x2", "y2"))
        inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
        scores = _column(detections, "score")
        # Stored as float32, in which hardly any decimal is exact.
        in_range = (scores >= np.float32(min_score) - 1e-6) & (scores <= 1 + 1e-6)
        tracked = detections.filter(pc.is_valid(detections["track_id"]))
        spans = tracked.group_by("track_id").aggregate([("pts_ms", "min"), ("pts_ms", "max")])
        lasting = _column(spans, "pts_ms_max") - _column(spans, "pts_ms_min")
        return cls(
            rows=detections.num_rows,
            outside=int((~inside).sum()),
            out_of_range=int((~in_range).sum()),
            tracks=spans.num_rows,
            short=int((lasting < SHORT_MS).sum()),
        )


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return table[name].to_numpy()
