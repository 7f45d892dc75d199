"""Pictures of a video of any length, in memory that does not grow with it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from capstone_dagster.analysis import Detections
from capstone_dagster.analysis.pictures import ContactSheet, Thumbnails

NOTHING = Detections.of([], [], [], ("person",))
NO_IDS = np.zeros(0, dtype=np.int32)


@pytest.mark.parametrize("frame_count", [1, 2, 5, 12, 13, 23, 24, 100, 1000])
@pytest.mark.parametrize("size", [(160, 90), (90, 160)], ids=["landscape", "portrait"])
def test_a_contact_sheet_spreads_over_the_whole_video(
    tmp_path: Path, frame_count: int, size: tuple[int, int]
) -> None:
    sheet = ContactSheet()
    for index in range(frame_count):  # each frame as bright as it is late
        brightness = 40 + round(200 * index / max(1, frame_count - 1))
        sheet.offer(np.full((size[1], size[0], 3), brightness, np.uint8), index * 200, NOTHING, NO_IDS)
        assert len(sheet._tiles) <= 24
    sheet.write(tmp_path / "sheet.jpg", NO_IDS)
    picture = cv2.imread(str(tmp_path / "sheet.jpg"), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    tile_height = (270 if size[0] > size[1] else 480) + 26
    rows = [picture[top + 100] for top in range(6, picture.shape[0] - 6, tile_height + 6)]
    tile_width = 480 if size[0] > size[1] else 270
    shown = [int(row[left + 5]) for row in rows for left in range(6, len(row) - 6, tile_width + 6)]
    shown = [brightness for brightness in shown if brightness >= 38]
    assert len(shown) == min(12, frame_count)
    assert shown == sorted(shown)
    if frame_count > 1:
        assert shown[0] <= 42
        assert shown[-1] >= 215 if frame_count >= 24 else 237
        assert max(np.diff(shown)) <= 200 / min(11, frame_count - 1) * 2.1


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        ContactSheet().write(tmp_path / "sheet.jpg", NO_IDS)


def picture_with(value: int) -> np.ndarray:
    return np.full((400, 1000, 3), value, dtype=np.uint8)


def person(score: float, box: tuple[int, int, int, int] = (100, 100, 200, 300)) -> Detections:
    return Detections.of([box], [score], [0], ("person",))


def test_a_thumbnail_is_the_best_view_with_a_margin(tmp_path: Path) -> None:
    thumbnails = Thumbnails(tmp_path, keep_ms=2000)
    for time_ms, (score, value) in enumerate([(0.5, 50), (0.9, 200), (0.9, 100), (0.6, 20)]):
        thumbnails.offer(picture_with(value), time_ms, person(score), np.array([1], dtype=np.int32))
    thumbnails.close(np.array([1], dtype=np.int32))
    thumbnail = cv2.imread(str(tmp_path / "1.jpg"))
    assert thumbnail is not None
    assert thumbnail.shape[:2] == (260, 130)  # 15 % more on each side
    assert abs(int(thumbnail.mean()) - 200) <= 2


def test_a_thumbnail_is_small_however_large_the_object(tmp_path: Path) -> None:
    thumbnails = Thumbnails(tmp_path, keep_ms=2000)
    thumbnails.offer(picture_with(9), 0, person(0.5, (0, 0, 1000, 400)), np.array([1], dtype=np.int32))
    thumbnails.close(np.array([1], dtype=np.int32))
    thumbnail = cv2.imread(str(tmp_path / "1.jpg"))
    assert thumbnail is not None
    assert max(thumbnail.shape) == 320


def test_thumbnails_of_tracks_that_are_gone_are_written_and_let_go(tmp_path: Path) -> None:
    folder = tmp_path / "thumbnails"
    thumbnails = Thumbnails(folder, keep_ms=2000)
    for track in range(1, 200):
        thumbnails.offer(picture_with(9), track * 1000, person(0.5), np.array([track], dtype=np.int32))
        assert len(thumbnails._candidates) <= 3
    assert not list(folder.glob("*.jpg"))  # nothing passes for a result before the end
    thumbnails.close(np.arange(1, 200, dtype=np.int32))
    assert len(list(folder.glob("*.jpg"))) == 199
    assert list(tmp_path.iterdir()) == [folder]


def test_a_view_that_is_worse_does_not_replace_one_that_was_written(tmp_path: Path) -> None:
    """Weak sightings hold a tracklet for longer than views are kept for it."""
    thumbnails = Thumbnails(tmp_path / "thumbnails", keep_ms=2000)
    for pts_ms, score, grey in ((0, 0.95, 200), (9000, 0.3, 20)):
        thumbnails.offer(picture_with(grey), pts_ms, person(score), np.array([1], dtype=np.int32))
        nobody = person(0.5).select(np.array([], dtype=np.intp))
        thumbnails.offer(picture_with(9), pts_ms + 5000, nobody, np.zeros(0, dtype=np.int32))
    thumbnails.close(np.array([1], dtype=np.int32))
    picture = cv2.imread(str(tmp_path / "thumbnails" / "1.jpg"))
    assert picture is not None
    assert picture.max() > 150


def test_of_tracklets_that_are_one_visit_the_best_view_stays(tmp_path: Path) -> None:
    """Tracklets 1, 3 and 5 are visit 1, 4 is visit 2, 2 is none; each is as bright as its number."""
    thumbnails = Thumbnails(tmp_path, keep_ms=2000)
    for tracklet, score in enumerate([0.5, 0.9, 0.8, 0.6, 0.7], start=1):
        thumbnails.offer(
            picture_with(40 * tracklet), tracklet * 5000, person(score), np.array([tracklet], dtype=np.int32)
        )
    thumbnails.close(np.array([1, -1, 1, 2, 1], dtype=np.int32))
    shown = {path.name: cv2.imread(str(path)) for path in tmp_path.iterdir()}
    brightness = {name: round(float(picture.mean()) / 40) for name, picture in shown.items()}  # type: ignore[union-attr]
    assert brightness == {"1.jpg": 3, "2.jpg": 4}


def test_a_sheet_shows_the_numbers_of_visits(tmp_path: Path) -> None:
    sheets = []
    for name, visits in (("a", [7]), ("b", [7]), ("c", [8]), ("d", [-1])):
        sheet = ContactSheet()
        sheet.offer(picture_with(90), 0, person(0.9), np.array([1], dtype=np.int32))
        sheet.write(tmp_path / f"{name}.jpg", np.array(visits, dtype=np.int32))
        sheets.append((tmp_path / f"{name}.jpg").read_bytes())
    assert sheets[0] == sheets[1]
    assert len(set(sheets)) == 3
