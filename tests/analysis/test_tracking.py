"""Tracks last by the video's clock, not by counts of frames, and their numbers are unique over all labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstone_dagster.analysis import AnalysisSettings, Detections
from capstone_dagster.analysis.settings import TrackerName
from capstone_dagster.analysis.tracking.video_tracker import UNTRACKED, VideoTracker

NAMES = ("person", "face")
PICTURE = np.zeros((480, 640, 3), dtype=np.uint8)
TRACKERS = ["motion", "bytetrack", "botsort"]
Box = tuple[float, float, float, float]


def standing(*, score: float = 0.9, label: int = 0, left: float = 100) -> Detections:
    return Detections.of([(left, 100, left + 60, 260)], [score], [label], NAMES)


NOBODY = Detections.of([], [], [], NAMES)


def visits(
    settings: AnalysisSettings, found: list[Detections], times_ms: list[int] | range, picture: bool = True
) -> list[list[int]]:
    """The visit of each detection of each picture."""
    tracker = VideoTracker(settings, NAMES)
    tracklets = [
        tracker.update(detections, PICTURE if picture else None, time_ms)
        for detections, time_ms in zip(found, times_ms, strict=True)
    ]
    visit_of = tracker.finish()
    return [
        [int(visit_of[number - 1]) if number != UNTRACKED else UNTRACKED for number in numbers]
        for numbers in tracklets
    ]


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("fps", [2, 5, 25])
@pytest.mark.parametrize(("absent_s", "same"), [(0.5, True), (1.5, True), (3.0, False)])
def test_a_lost_track_is_kept_for_seconds_of_video(
    tracker: TrackerName, fps: int, absent_s: float, same: bool
) -> None:
    present = [True] * (2 * fps) + [False] * int(absent_s * fps) + [True] * (2 * fps)
    ids = visits(
        AnalysisSettings(tracker=tracker, track_buffer_s=2),
        [standing() if there else NOBODY for there in present],
        range(0, len(present) * 1000 // fps, 1000 // fps),
    )
    assert ids[: 2 * fps] == [[1]] * (2 * fps)
    assert ids[-2 * fps :] == [[1 if same else 2]] * (2 * fps)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_one_sighting_is_no_track(tracker: TrackerName) -> None:
    found = [NOBODY, standing(), NOBODY, NOBODY, NOBODY]
    assert visits(AnalysisSettings(tracker=tracker), found, range(0, 1000, 200))[1] == [UNTRACKED]


def test_what_flickers_for_a_moment_is_no_track_however_often_it_is_looked_at() -> None:
    flicker = [standing(score=0.3)] * 10 + [NOBODY] * 90
    assert visits(AnalysisSettings(), flicker, range(0, 3300, 33))[0] == [UNTRACKED]
    assert visits(AnalysisSettings(), [standing(score=0.8)] * 10 + [NOBODY] * 90, range(0, 3300, 33))[0] == [
        1
    ]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_ids_are_unique_over_labels(tracker: TrackerName) -> None:
    both = Detections.of([(10, 10, 70, 170), (400, 20, 440, 60)], [0.9, 0.8], [0, 1], NAMES)
    ids = visits(AnalysisSettings(tracker=tracker), [both] * 5, range(0, 1000, 200))
    assert ids == [[1, 2]] * 5


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_weak_detection_continues_a_track_and_starts_none(tracker: TrackerName) -> None:
    settings = AnalysisSettings(min_score=0.25, tracker=tracker)
    scores = [0.9, 0.9, 0.15, 0.15, 0.9]
    times_ms = range(0, 1000, 200)
    assert visits(settings, [standing(score=score) for score in scores], times_ms) == [[1]] * 5
    assert visits(settings, [standing(score=0.15)] * 5, times_ms) == [[UNTRACKED]] * 5


def test_two_videos_do_not_share_ids() -> None:
    for _ in range(2):
        assert visits(AnalysisSettings(), [standing()] * 2, [0, 200]) == [[1]] * 2


def crossing(time_ms: float) -> list[Box]:
    """Two people who walk towards each other at a height a second, one a little lower, and pass."""
    aside = 1.6 * 100 * time_ms / 1000 * 0.6
    return [(60 + aside, 100, 100 + aside, 200), (500 - aside, 115, 540 - aside, 220)]


@pytest.mark.parametrize("fps", [2, 3, 5, 10, 30])
def test_people_are_followed_where_boxes_do_not_overlap(fps: int) -> None:
    times_ms = [round(index * 1000 / fps) for index in range(4 * fps + 1)]
    found = [Detections.of(crossing(time_ms), [0.8, 0.8], [0, 0], NAMES) for time_ms in times_ms]
    assert visits(AnalysisSettings(), found, times_ms) == [[1, 2]] * len(found)


@pytest.mark.parametrize("label", ["person", "face"])
@pytest.mark.parametrize("interval_s", [0.2, 0.5, 1, 1.5, 2, 3, 5, 10])
def test_who_stands_still_is_one_visit_however_seldom_we_look(interval_s: float, label: str) -> None:
    tracker = VideoTracker(AnalysisSettings(labels=(label,)), (label,))
    random = np.random.default_rng(0)
    numbers = []
    for index in range(12):
        x, y = 100 + random.normal(0, 1), 100 + random.normal(0, 1)
        found = Detections.of([(x, y, x + 40, y + 50)], [0.8], [0], (label,))
        numbers.append(int(tracker.update(found, None, round(index * interval_s * 1000))[0]))
    visits = tracker.finish()
    assert {int(visits[number - 1]) for number in numbers} == {1}


def test_pictures_may_be_any_time_apart() -> None:
    rng = np.random.default_rng(1)
    times_ms = np.cumsum(rng.choice([33, 67, 200, 500, 1000], 60)).tolist()
    # To and fro, within the frame.
    lefts = [250 + 200 * np.sin(time_ms / 4000) for time_ms in times_ms]
    found = [standing(left=left) for left in lefts]
    assert visits(AnalysisSettings(), found, times_ms) == [[1]] * len(found)


def walking(index: int, fps: int, speed: float = 80.0) -> Detections:
    left = 30 + speed * index / fps
    return Detections.of([(left, 150, left + 40, 250)], [0.8], [0], NAMES)


@pytest.mark.parametrize("fps", [2, 5, 25])
@pytest.mark.parametrize("hidden_s", [1.5, 3.0])
def test_who_passes_behind_something_is_one_visit(fps: int, hidden_s: float) -> None:
    times_ms = [round(index * 1000 / fps) for index in range(7 * fps)]
    hidden = range(2 * fps, 2 * fps + round(hidden_s * fps))
    found = [NOBODY if index in hidden else walking(index, fps) for index in range(7 * fps)]
    ids = visits(AnalysisSettings(), found, times_ms)
    assert {number for numbers in ids for number in numbers} == {1}


def out_of_the_frame(fps: int) -> list[Box]:
    return [(560 + 40 * i / fps, 150, min(640, 600 + 40 * i / fps), 250) for i in range(round(1.5 * fps))]


def at_the_border(fps: int) -> list[Box]:
    return [(598, 150, 638, 250)] * (2 * fps)


@pytest.mark.parametrize("fps", [5, 25])
@pytest.mark.parametrize("absent_s", [1.4, 2.0])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (out_of_the_frame, lambda fps: out_of_the_frame(fps)[::-1]),
        (out_of_the_frame, at_the_border),
        (at_the_border, lambda fps: out_of_the_frame(fps)[::-1]),
    ],
    ids=["leaves and comes", "leaves", "comes"],
)
def test_who_leaves_is_not_who_comes(
    first: Callable[[int], list[Box]], second: Callable[[int], list[Box]], fps: int, absent_s: float
) -> None:
    boxes: list[Box | None] = [*first(fps), *[None] * round(absent_s * fps), *second(fps)]
    found = [NOBODY if box is None else Detections.of([box], [0.8], [0], NAMES) for box in boxes]
    ids = visits(AnalysisSettings(), found, [round(i * 1000 / fps) for i in range(len(found))])
    assert {number for numbers in ids for number in numbers} == {1, 2}


@pytest.mark.parametrize("fps", [5, 25])
def test_who_stands_at_the_border_and_is_hidden_is_one_visit(fps: int) -> None:
    boxes: list[Box | None] = [*at_the_border(fps), *[None] * (2 * fps), *at_the_border(fps)]
    found = [NOBODY if box is None else Detections.of([box], [0.8], [0], NAMES) for box in boxes]
    ids = visits(AnalysisSettings(), found, [round(i * 1000 / fps) for i in range(len(found))])
    assert {number for numbers in ids for number in numbers} == {1}


def dressed(colours: list[tuple[int, int, int]], boxes: list[Box]) -> np.ndarray:
    image = np.full((480, 640, 3), 120, dtype=np.uint8)
    for colour, (x1, y1, x2, y2) in zip(colours, boxes, strict=True):
        image[round(y1) : round(y2), round(x1) : round(x2)] = colour
    return image


def test_clothes_tell_who_stayed_and_who_left() -> None:
    """Somebody is hidden for 2 s; in his place appears one who wears the same, or one who does not."""
    place: Box = (300, 150, 350, 290)
    red, blue = (40, 40, 200), (200, 60, 40)
    for other, people in ((red, 1), (blue, 2)):
        tracker = VideoTracker(AnalysisSettings(track_buffer_s=10), NAMES)
        numbers = []
        for index in range(45):
            found = NOBODY if 15 <= index < 30 else Detections.of([place], [0.8], [0], NAMES)
            colour = red if index < 15 else other
            numbers += tracker.update(found, dressed([colour], [place]), 200 * index).tolist()
        assert len({int(visit) for visit in tracker.finish()[np.array(numbers) - 1]}) == people


def test_what_waits_does_not_grow_with_the_video() -> None:
    """Somebody new every second for ten minutes: what is held in the end is what was held after one."""
    tracker = VideoTracker(AnalysisSettings(), NAMES)
    held = []
    for index in range(10 * 60 * 5):
        left = 40.0 + 100 * (index // 5 % 6)
        tracker.update(standing(left=left) if index % 5 < 3 else NOBODY, None, 200 * index)
        stitcher = tracker._stitcher
        held.append(len(stitcher._begun) + len(stitcher._ended))
    assert max(held[300:]) <= max(held[:300])
    assert max(held) < 40


@st.composite
def footage(draw: st.DrawFn) -> tuple[list[Detections], list[int]]:
    found, times_ms, now = [], [], 0
    for _ in range(draw(st.integers(0, 25))):
        now += draw(st.sampled_from([0, 33, 200, 500, 7000]))
        count = draw(st.integers(0, 4))
        corners = [
            (draw(st.floats(0, 630, width=32)), draw(st.floats(0, 470, width=32))) for _ in range(count)
        ]
        boxes = [
            (x, y, draw(st.floats(x, 640, width=32)), draw(st.floats(y, 480, width=32))) for x, y in corners
        ]
        scores = draw(st.lists(st.floats(0.125, 1, width=32), min_size=count, max_size=count))
        labels = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
        found.append(Detections.of(boxes, scores, labels, NAMES))
        times_ms.append(now)
    return found, times_ms


@settings(deadline=None)
@given(footage=footage(), picture=st.booleans())
def test_whatever_was_detected_visits_are_sound(
    footage: tuple[list[Detections], list[int]], picture: bool
) -> None:
    found, times_ms = footage
    analysis = AnalysisSettings()
    ids = visits(analysis, found, times_ms, picture)
    labels: dict[int, set[int]] = {}
    sightings: dict[int, int] = {}
    for numbers, detections in zip(ids, found, strict=True):
        tracked = [number for number in numbers if number != UNTRACKED]
        assert len(set(tracked)) == len(tracked)  # nobody is in two places at once
        for number, label in zip(numbers, detections.label_ids.tolist(), strict=True):
            labels.setdefault(number, set()).add(label)
            sightings[number] = sightings.get(number, 0) + 1
    sightings.pop(UNTRACKED, None)
    assert sorted(sightings) == list(range(1, len(sightings) + 1))
    assert all(count >= 2 for count in sightings.values())
    assert all(len(labels[number]) == 1 for number in sightings)


def test_a_second_box_of_one_body_is_nobody() -> None:
    """Head and shoulders are found beside the whole person in every picture."""
    both = Detections.of([(100, 100, 160, 260), (102, 100, 158, 180)], [0.8, 0.6], [0, 0], NAMES)
    assert visits(AnalysisSettings(), [both] * 10, range(0, 2000, 200)) == [[1, UNTRACKED]] * 10


@pytest.mark.parametrize("fps", [5, 10, 25])
@pytest.mark.parametrize("coming", [True, False])
def test_whom_the_frame_cuts_is_one_visit(fps: int, coming: bool) -> None:
    """Somebody large and near grows out of the lower border within a second, or sinks behind it."""
    boxes: list[Box] = [
        (250, max(100, 480 - 380 * index / fps), 300 + 60 * min(1, index / fps), 478)
        for index in range(1, 3 * fps)
    ]
    found = [Detections.of([box], [0.8], [0], NAMES) for box in (boxes if coming else boxes[::-1])]
    ids = visits(AnalysisSettings(), found, [round(index * 1000 / fps) for index in range(len(found))])
    assert ids == [[1]] * len(found)


def test_the_larger_of_two_whom_the_frame_cuts_does_not_take_over_the_others_box() -> None:
    """One of two people close to the camera leaves, as in the demo clip; boxes as the detector gave them."""
    first = [(8.0, 140.0, 950.0, 480.0)] * 12 + [(0.0, 146.7, 808.7, 480.0), (0.0, 176.0, 746.7, 476.7)]
    second = [(446.0, 0.0, 747.0, 479.0)] * 12 + [(379.3, 0.0, 773.3, 480.0), (298.0, 0.0, 762.7, 480.0)]
    left_alone = [(178.0, 0.0, 709.3, 480.0), (71.3, 7.3, 661.3, 480.0), (23.3, 13.3, 647.3, 480.0)]
    found = [Detections.of([*pair], [0.9, 0.95], [0, 0], NAMES) for pair in zip(first, second, strict=True)]
    found += [Detections.of([box], [0.93], [0], NAMES) for box in left_alone]
    tracker = VideoTracker(AnalysisSettings(), NAMES)
    picture = np.zeros((480, 853, 3), dtype=np.uint8)
    numbers = [
        tracker.update(detections, picture, 200 * index).tolist() for index, detections in enumerate(found)
    ]
    assert numbers[0] == [1, 2]
    assert [each[-1] for each in numbers] == [2] * len(found)
