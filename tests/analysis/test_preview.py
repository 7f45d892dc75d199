"""The annotated preview: it plays in browsers, and shows what was detected, when and where."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capstone_dagster.analysis import DETECTIONS_SCHEMA, FRAMES_SCHEMA, UndecodableVideo, frames
from capstone_dagster.analysis.preview import render_preview

MakeClip = Callable[..., Path]
# Irregular, as phones film.
TIMES_MS = [0, 40, 90, 120, 200, 240, 280, 400, 440, 480]
ANALYZED = [0, 4, 9]


def parquet(
    folder: Path, rows: list[tuple[int, int | None, tuple[float, float, float, float]]]
) -> tuple[Path, Path]:
    detections, decoded = folder / "detections.parquet", folder / "frames.parquet"
    columns: dict[str, list[Any]] = {
        "frame_index": [index for index, _, _ in rows],
        "pts_ms": [TIMES_MS[index] for index, _, _ in rows],
        "track_id": [track for _, track, _ in rows],
        "label": ["person"] * len(rows),
        "score": [0.9] * len(rows),
    }
    for place, name in enumerate(("x1", "y1", "x2", "y2")):
        columns[name] = [box[place] for _, _, box in rows]
    pq.write_table(pa.table(columns, schema=DETECTIONS_SCHEMA), detections)
    reported = {
        "frame_index": list(range(len(TIMES_MS))),
        "pts_ms": TIMES_MS,
        "motion": [0.0] * len(TIMES_MS),
        "analyzed": [index in ANALYZED for index in range(len(TIMES_MS))],
        "detections": [0] * len(TIMES_MS),
    }
    pq.write_table(pa.table(reported, schema=FRAMES_SCHEMA), decoded)
    return detections, decoded


def differences(preview: Path, clip: Path) -> list[npt.NDArray[np.int64]]:
    """For each frame, the columns in its upper half that are not as in the source."""
    found = []
    for ours, source in zip(frames(preview, sample_fps=0), frames(clip, sample_fps=0), strict=True):
        assert ours.image is not None
        assert source.image is not None
        half = ours.image.shape[0] // 2
        apart = np.abs(ours.image[:half].astype(int) - source.image[:half]).max(axis=(0, 2))
        found.append(np.flatnonzero(apart > 60))
    return found


def test_a_preview_is_h264_that_browsers_play_from_the_start(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip("clip.mp4", TIMES_MS, size=(320, 240))
    out = tmp_path / "preview.mp4"
    reported: list[int] = []

    done = render_preview(clip, *parquet(tmp_path, []), out, progress=reported.append)

    assert (done.width, done.height, done.frames, done.duration_ms) == (320, 240, 10, 480)
    assert reported == TIMES_MS
    with av.open(str(out)) as container:
        (stream,) = container.streams
        assert isinstance(stream, av.VideoStream)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert [frame.pts_ms for frame in frames(out, sample_fps=0)] == TIMES_MS
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert sorted(path.name for path in tmp_path.glob("*preview*")) == ["preview.mp4"]


def test_boxes_are_where_they_were_and_move_in_between(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip("clip.mp4", TIMES_MS, size=(640, 480))
    # From 100 to 300 in the frames 0 to 4; then it is gone by 9.
    tables = parquet(tmp_path, [(0, 1, (100, 60, 160, 200)), (4, 1, (300, 60, 360, 200))])

    render_preview(clip, *tables, tmp_path / "preview.mp4")

    left = [
        columns.min() if len(columns) else None for columns in differences(tmp_path / "preview.mp4", clip)
    ]
    expected = [100, 140, 190, 220, 300]
    assert left[:5] == pytest.approx(expected, abs=4)
    assert left[5:7] == pytest.approx([300, 300], abs=4)  # 40 and 80 of 280 ms
    assert left[7:] == [None] * 3


def test_what_is_not_tracked_is_not_shown(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip("clip.mp4", TIMES_MS, size=(640, 480))
    tables = parquet(tmp_path, [(0, None, (100, 60, 160, 200))])
    render_preview(clip, *tables, tmp_path / "preview.mp4")
    assert not any(len(columns) for columns in differences(tmp_path / "preview.mp4", clip))


@pytest.mark.parametrize(
    ("size", "expected"), [((1920, 1080), (1280, 720)), ((322, 182), (322, 182)), ((720, 1440), (640, 1280))]
)
def test_a_preview_is_as_large_as_a_screen(
    make_clip: MakeClip, tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    clip = make_clip("clip.mp4", [0, 40], size=size)
    tables = parquet(tmp_path, [(0, 1, (1, 1, 9, 9))])
    done = render_preview(
        clip, *tables, tmp_path / "preview.mp4", recorded_at=datetime(2026, 1, 2, tzinfo=UTC)
    )
    assert (done.width, done.height) == expected


def test_what_is_no_video_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(UndecodableVideo):
        render_preview(broken, *parquet(tmp_path, []), tmp_path / "preview.mp4")
    assert not list(tmp_path.glob("*preview*"))
