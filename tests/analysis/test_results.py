"""What a pass leaves behind: rows, pictures and counts that agree on who is who."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from capstone_dagster.analysis import AnalysisSettings, Detections, Frame, read_detections
from capstone_dagster.analysis.results import Results

NAMES = ("person",)
SETTINGS = AnalysisSettings(labels=NAMES)


def feed(out: Path, *, fail: bool = False) -> Results:
    """At 5 frames a second somebody walks through, hidden for 3 s on the way; something flickers once."""
    with Results(out, SETTINGS, NAMES) as results:
        for index in range(50):
            left = 20 + 10 * index
            boxes = [] if 15 <= index < 30 else [(left, 100, left + 40, 200)]
            if index == 5:
                boxes.append((500, 20, 540, 120))
            image = np.full((300, 640, 3), 200 if index == 40 else 60, dtype=np.uint8)
            found = Detections.of(boxes, [0.9 if index == 40 else 0.8] * len(boxes), [0] * len(boxes), NAMES)
            results.add(Frame(index, index * 200, 0.0, image), found)
        if fail:
            raise RuntimeError("the model gave up")
        results.finish()
    return results


@pytest.mark.parametrize("rows_at_once", [1, 7, 16_384])
def test_a_visit_has_one_number_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr("capstone_dagster.analysis.results._ROWS_AT_ONCE", rows_at_once)
    results = feed(tmp_path)
    rows = read_detections(tmp_path / "detections.parquet").to_pylist()
    assert [row["frame_index"] for row in rows] == [*range(6), 5, *range(6, 15), *range(30, 50)]
    flicker = [row for row in rows if row["x1"] == 500 and row["y1"] == 20]
    assert [row["track_id"] for row in flicker] == [None]
    assert {row["track_id"] for row in rows if row not in flicker} == {1}
    assert (results.tracks, results.detections) == (1, 36)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "1.jpg", "contact_sheet.jpg", "detections.parquet", "frames.parquet"
    ]  # fmt: skip
    thumbnail = cv2.imread(str(tmp_path / "thumbnails/1.jpg"))
    assert thumbnail is not None
    assert abs(int(thumbnail.mean()) - 200) <= 2  # the surest sighting, after the gap


def test_a_pass_that_fails_leaves_no_tables(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="gave up"):
        feed(tmp_path, fail=True)
    assert list(tmp_path.glob("*.parquet*")) == []
