"""Tracks last by the video's clock, not by counts of frames, and their ids are unique over all labels."""

from __future__ import annotations

import numpy as np
import pytest

from capstone_dagster.analysis import AnalysisSettings, Detections
from capstone_dagster.analysis.settings import TrackerName
from capstone_dagster.analysis.tracking import UNTRACKED, VideoTracker

NAMES = ("person", "face")
PICTURE = np.zeros((480, 640, 3), dtype=np.uint8)


def standing(*, score: float = 0.9, label: int = 0, left: float = 100) -> Detections:
    return Detections.of([(left, 100, left + 60, 260)], [score], [label], NAMES)


NOBODY = Detections.of([], [], [], NAMES)


@pytest.mark.parametrize("tracker", ["bytetrack", "botsort"])
@pytest.mark.parametrize("fps", [2, 5, 25])
@pytest.mark.parametrize(("absent_s", "same"), [(0.5, True), (1.5, True), (3.0, False)])
def test_a_lost_track_is_kept_for_seconds_of_video(
    tracker: TrackerName, fps: int, absent_s: float, same: bool
) -> None:
    tracks = VideoTracker(AnalysisSettings(tracker=tracker, track_buffer_s=2), NAMES)
    step_ms = 1000 // fps
    present = [True] * (2 * fps) + [False] * int(absent_s * fps) + [True] * (2 * fps)
    ids = [
        tracks.update(standing() if there else NOBODY, PICTURE, index * step_ms).track_ids
        for index, there in enumerate(present)
    ]
    before, after = ids[2 * fps - 1], ids[-1]
    assert before.tolist() == [1]
    assert (after.tolist() == [1]) == same
    assert tracks.tracks == (1 if same else 2)


def test_the_first_sighting_is_told_when_the_second_confirms_it() -> None:
    tracks = VideoTracker(AnalysisSettings(), NAMES)
    tracks.update(NOBODY, PICTURE, 0)
    first = tracks.update(standing(), PICTURE, 200)
    second = tracks.update(standing(), PICTURE, 400)
    assert first.track_ids.tolist() == [UNTRACKED]
    assert second.track_ids.tolist() == [1]
    assert second.confirmed == ((0, 1),)


def test_one_sighting_is_no_track() -> None:
    tracks = VideoTracker(AnalysisSettings(), NAMES)
    for index, found in enumerate([NOBODY, standing(), NOBODY, NOBODY]):
        assignment = tracks.update(found, PICTURE, index * 200)
        assert assignment.track_ids.tolist() in ([], [UNTRACKED])
        assert assignment.confirmed == ()
    assert tracks.tracks == 0


def test_ids_are_unique_over_labels() -> None:
    tracks = VideoTracker(AnalysisSettings(), NAMES)
    both = Detections.of([(10, 10, 70, 170), (400, 20, 440, 60)], [0.9, 0.8], [0, 1], NAMES)
    for index in range(3):
        ids = tracks.update(both, PICTURE, index * 200).track_ids
    assert sorted(ids.tolist()) == [1, 2]


def test_a_weak_detection_continues_a_track_and_starts_none() -> None:
    tracks = VideoTracker(AnalysisSettings(min_score=0.25), NAMES)
    scores = [0.9, 0.9, 0.15, 0.15, 0.9]
    ids = [
        tracks.update(standing(score=score), PICTURE, index * 200).track_ids[0]
        for index, score in enumerate(scores)
    ]
    assert ids == [1] * 5
    weak_only = VideoTracker(AnalysisSettings(min_score=0.25), NAMES)
    for index in range(5):
        weak_only.update(standing(score=0.15), PICTURE, index * 200)
    assert weak_only.tracks == 0


def test_two_videos_do_not_share_ids() -> None:
    for _ in range(2):
        tracks = VideoTracker(AnalysisSettings(), NAMES)
        assert tracks.update(standing(), PICTURE, 0).track_ids.tolist() == [1]
