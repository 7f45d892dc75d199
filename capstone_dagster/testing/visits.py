"""Tracked detections and events written down in seconds, for tests of what is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from capstone_dagster.analysis import DETECTIONS_SCHEMA, Coverage, Event, EventRules, build_events

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Visit:
    """Somebody is seen in every analysed frame from `start_s` to `end_s`.

    Attributes:
        track: which one's it is; two visits of one track are one visitor seen twice.
        label: `person`, `face` or whatever the model knows.
        box: x1, y1, x2, y2 as shares of the frame (0-1), wherever he is.
        score: how sure the detector is of him (0-1).
    """

    start_s: float
    end_s: float
    track: int = 1
    label: str = "person"
    box: Box = (0.4, 0.2, 0.6, 0.9)
    score: float = 0.9


def detections_of(
    visits: Sequence[Visit],
    *,
    duration_s: float = 60.0,
    sample_fps: float = 5.0,
    size: tuple[int, int] = (1920, 1080),
) -> tuple[pa.Table, Coverage]:
    """What a pass over such a video's pixels would leave: `DETECTIONS_SCHEMA`'s table, what it covered.

    Args:
        duration_s: how long the video is.
        sample_fps: frames analysed a second; here every decoded frame is.
        size: width and height in pixels.
    """
    interval_ms = 1000 / sample_fps
    width, height = size
    rows = []
    for frame in range(int(duration_s * sample_fps)):
        pts_ms = round(frame * interval_ms)
        for visit in visits:
            if visit.start_s * 1000 <= pts_ms <= visit.end_s * 1000:
                x1, y1, x2, y2 = visit.box
                rows.append(
                    {
                        "frame_index": frame,
                        "pts_ms": pts_ms,
                        "track_id": visit.track,
                        "label": visit.label,
                        "score": visit.score,
                        **{"x1": x1 * width, "y1": y1 * height, "x2": x2 * width, "y2": y2 * height},
                    }
                )
    last_ms = round((int(duration_s * sample_fps) - 1) * interval_ms)
    coverage = Coverage(width, height, 0, last_ms, interval_ms, interval_ms)
    return pa.Table.from_pylist(rows, schema=DETECTIONS_SCHEMA), coverage


def events_of(
    *visits: Visit, rules: EventRules | None = None, duration_s: float = 60.0, sample_fps: float = 5.0
) -> list[Event]:
    """The events that these rules (today's, unless others are given) make of such a video."""
    table, coverage = detections_of(visits, duration_s=duration_s, sample_fps=sample_fps)
    return build_events(table, coverage, analysis_id="test", rules=rules or EventRules())
