"""One event is one continuous presence; a face is an attribute of the person who wears it."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.analysis import (
    DETECTIONS_SCHEMA,
    Coverage,
    Event,
    EventRules,
    InvalidAnalysisSettings,
    build_events,
    read_events,
    write_events,
)

WIDTH, HEIGHT, INTERVAL_MS = 640, 480, 200
LAST_FRAME = 100
PERSON_BOX = (100.0, 100.0, 200.0, 400.0)
FACE_BOX = (135.0, 105.0, 165.0, 145.0)
Row = tuple[int, int | None, str, float, tuple[float, float, float, float]]  # frame, track, label, score, box


def table(rows: list[Row]) -> pa.Table:
    columns = {
        "frame_index": [row[0] for row in rows],
        "pts_ms": [row[0] * INTERVAL_MS for row in rows],
        "track_id": [row[1] for row in rows],
        "label": [row[2] for row in rows],
        "score": [row[3] for row in rows],
    }
    for position, name in enumerate(("x1", "y1", "x2", "y2")):
        columns[name] = [row[4][position] for row in rows]
    return pa.table(columns, schema=DETECTIONS_SCHEMA)


def build(rows: list[Row], longest_interval_ms: float = INTERVAL_MS, **rules: Any) -> list[Event]:
    coverage = Coverage(WIDTH, HEIGHT, 0, LAST_FRAME * INTERVAL_MS, INTERVAL_MS, longest_interval_ms)
    return build_events(table(rows), coverage, analysis_id="analysis", rules=EventRules(**rules))


def seen(frames: list[int] | range, track: int | None = 1, label: str = "person", score: float = 0.5,
         box: tuple[float, float, float, float] = PERSON_BOX) -> list[Row]:  # fmt: skip
    return [(frame, track, label, score, box) for frame in frames]


def test_a_presence_is_told_with_its_best_moment() -> None:
    rows = [*seen(range(10, 20)), (20, 1, "person", 0.75, (320, 240, 640, 480)), *seen([21, 22])]
    (event,) = build(rows)
    assert (event.track_id, event.label, event.analysis_id) == (1, "person", "analysis")
    assert (event.start_ms, event.end_ms, event.first_frame, event.last_frame) == (2000, 4400, 10, 22)
    assert (event.best_score, event.best_ms, event.best_box) == (0.75, 4000, (0.5, 0.5, 1.0, 1.0))
    assert event.mean_score == pytest.approx((12 * 0.5 + 0.75) / 13)
    assert (event.detections, event.sample_interval_ms) == (13, 200)
    assert event.thumbnail_key == "thumbnails/1.jpg"
    assert len(event.event_id) == 32
    assert event.face_score is event.face_box is None


@pytest.mark.parametrize(
    ("frames", "rules", "spans"),
    [
        (range(10, 20), {}, [(10, 19)]),
        ([10, 11, 15, 16], {}, [(10, 16)]),
        ([*range(10, 15), *range(24, 30)], {"max_gap_s": 2.0}, [(10, 29)]),
        ([*range(10, 15), *range(25, 30)], {"max_gap_s": 2.0}, [(10, 14), (25, 29)]),
        ([10, 11, 14, 15], {"max_gap_s": 0.5}, [(10, 11), (14, 15)]),
        # However short the gap allowed, one missed detection never splits.
        ([10, 11, 13, 14], {"max_gap_s": 0}, [(10, 14)]),
        # Left to the tracker: what it found to be one visit is one event.
        ([*range(10, 15), *range(90, 95)], {}, [(10, 94)]),
        ([10], {}, []),
        ([10, 11], {"min_detections": 3}, []),
        ([10, 11], {"min_duration_s": 0.5}, []),
        ([10, 11], {"min_duration_s": 0.4}, [(10, 11)]),
        # What remains of a track after a cut is judged by itself.
        ([*range(10, 15), 40], {"max_gap_s": 2.0}, [(10, 14)]),
        ([], {}, []),
    ],
)
def test_gaps_split_and_short_presences_are_noise(
    frames: list[int], rules: dict[str, Any], spans: list[tuple[int, int]]
) -> None:
    assert [(event.first_frame, event.last_frame) for event in build(seen(frames), **rules)] == spans


@pytest.mark.parametrize(
    ("longest_interval_ms", "spans"), [(INTERVAL_MS, [(10, 12), (32, 34)]), (2000, [(10, 34)])]
)
def test_what_was_left_out_on_purpose_splits_nothing(
    longest_interval_ms: float, spans: list[tuple[int, int]]
) -> None:
    """Somebody stands still for four seconds, and the motion gate looks every two: one miss is no end."""
    events = build(seen([10, 11, 12, 32, 33, 34]), longest_interval_ms, max_gap_s=1)
    assert [(event.first_frame, event.last_frame) for event in events] == spans


@pytest.mark.parametrize(
    ("frames", "truncated"),
    [
        (range(0, 10), (True, False)),
        (range(90, 101), (False, True)),
        (range(0, 101), (True, True)),
        (range(1, 100), (False, False)),
    ],
)
def test_a_presence_at_the_edge_of_the_video_is_cut_off(frames: range, truncated: tuple[bool, bool]) -> None:
    (event,) = build(seen(frames))
    assert (event.truncated_start, event.truncated_end) == truncated


def test_untracked_detections_make_no_event() -> None:
    assert build(seen(range(10, 30), track=None)) == []


def test_a_face_is_an_attribute_of_the_person_who_wears_it() -> None:
    rows = seen(range(10, 20)) + seen(range(12, 18), track=2, label="face", box=FACE_BOX)
    rows.append((18, 2, "face", 0.875, (140, 100, 160, 148)))
    (person,) = build(rows)
    assert (person.label, person.face_score) == ("person", 0.875)
    assert person.face_box == pytest.approx((140 / 640, 100 / 480, 160 / 640, 148 / 480))


@pytest.mark.parametrize(
    ("face_rows", "labels"),
    [
        (seen(range(10, 20), track=2, label="face", box=(300, 100, 330, 140)), ["person", "face"]),  # beside
        (seen(range(40, 50), track=2, label="face", box=FACE_BOX), ["person", "face"]),  # at another time
        (
            seen(range(10, 20), track=2, label="face", box=(190, 100, 230, 140)),
            ["person", "face"],
        ),  # a quarter inside
        (seen(range(15, 25), track=2, label="face", box=FACE_BOX), ["person"]),  # half of the time inside
        (seen(range(16, 26), track=2, label="face", box=FACE_BOX), ["person", "face"]),  # less than half
        (seen([15], track=2, label="face", box=FACE_BOX), ["person"]),  # noise
    ],
)
def test_a_face_by_itself_is_an_event_of_its_own(face_rows: list[Row], labels: list[str]) -> None:
    events = build(seen(range(10, 20)) + face_rows)
    assert [event.label for event in events] == labels
    worn = labels == ["person"] and len(face_rows) > 1
    assert (events[0].face_score is not None) == worn


def test_in_a_crowd_a_face_goes_to_the_person_it_fits() -> None:
    behind = (60.0, 20.0, 260.0, 460.0)  # a larger person around the smaller one
    own_face = (140.0, 30.0, 180.0, 80.0)
    rows = (
        seen(range(10, 20), track=1, box=behind)
        + seen(range(10, 20), track=2, box=PERSON_BOX)
        + seen(range(10, 20), track=3, label="face", score=0.5, box=FACE_BOX)
        + seen(range(10, 20), track=4, label="face", score=0.75, box=own_face)
    )
    faces = {event.track_id: event.face_score for event in build(rows)}
    assert faces == {1: 0.75, 2: 0.5}


def test_one_person_has_one_face() -> None:
    second = (150.0, 300.0, 180.0, 340.0)  # a picture on the shirt
    rows = (
        seen(range(10, 20))
        + seen(range(10, 20), track=2, label="face", score=0.5, box=FACE_BOX)
        + seen(range(10, 20), track=3, label="face", score=0.75, box=second)
    )
    events = build(rows)
    assert [(event.label, event.track_id, event.face_score) for event in events] == [
        ("person", 1, 0.5), ("face", 3, None)
    ]  # fmt: skip


def test_a_face_follows_its_person_across_a_split() -> None:
    rows = [
        *seen(range(10, 15)),
        *seen(range(40, 45)),
        *seen(range(40, 45), track=2, label="face", box=FACE_BOX),
    ]
    first, second = build(rows, max_gap_s=5)
    assert first.face_score is None
    assert second.face_score == 0.5


@st.composite
def rows_of_a_video(draw: st.DrawFn) -> list[Row]:
    rows: list[Row] = []
    for track in range(draw(st.integers(0, 6))):
        label = draw(st.sampled_from(["person", "person", "face", "car"]))
        track_id = None if draw(st.integers(0, 5)) == 0 else track + 1
        for frame in draw(st.sets(st.integers(0, LAST_FRAME), max_size=25)):
            x1, y1 = draw(st.floats(0, WIDTH - 2, width=32)), draw(st.floats(0, HEIGHT - 2, width=32))
            x2, y2 = draw(st.floats(x1, WIDTH, width=32)), draw(st.floats(y1, HEIGHT, width=32))
            score = draw(st.floats(0.25, 1, width=32))
            rows.append((frame, track_id, label, score, (x1, y1, x2, y2)))
    return rows


rules_of_a_video = st.fixed_dictionaries(
    {
        "min_detections": st.integers(1, 3),
        "min_duration_s": st.sampled_from([0.0, 0.3, 1.0]),
        "max_gap_s": st.sampled_from([0.0, 0.5, 2.0]),
    }
)


@given(rows=rows_of_a_video(), rules=rules_of_a_video, seed=st.integers())
def test_whatever_was_detected_events_are_sound(rows: list[Row], rules: dict[str, Any], seed: int) -> None:
    events = build(rows, **rules)

    shuffled = rows.copy()
    random.Random(seed).shuffle(shuffled)
    assert build(shuffled, **rules) == events
    assert events == sorted(events, key=lambda event: (event.start_ms, event.track_id))
    assert len({event.event_id for event in events}) == len(events)

    by_track: dict[int, list[Event]] = {}
    for event in events:
        by_track.setdefault(event.track_id, []).append(event)
        assert 0 <= event.start_ms <= event.best_ms <= event.end_ms <= LAST_FRAME * INTERVAL_MS
        assert event.first_frame <= event.last_frame
        assert 0 <= event.mean_score <= event.best_score + 1e-9
        assert event.best_score <= 1
        assert event.detections >= rules["min_detections"]
        assert (event.face_score is None) == (event.face_box is None)
        assert event.label == "person" or event.face_box is None
        for box in (event.best_box, event.face_box or event.best_box):
            assert 0 <= box[0] <= box[2] <= 1
            assert 0 <= box[1] <= box[3] <= 1
        # Every tracked detection of its time is counted exactly once.
        assert event.detections == sum(
            row[1] == event.track_id and event.first_frame <= row[0] <= event.last_frame for row in rows
        )
    for presences in by_track.values():
        for earlier, later in itertools.pairwise(presences):
            assert earlier.end_ms < later.start_ms


@given(rows=rows_of_a_video())
def test_without_rules_every_tracked_detection_is_in_one_event(rows: list[Row]) -> None:
    rows = [row for row in rows if row[2] != "face"]
    events = build(rows, min_detections=1, min_duration_s=0)
    assert sum(event.detections for event in events) == sum(row[1] is not None for row in rows)


def test_events_survive_the_file(tmp_path: Path) -> None:
    rows = seen(range(10, 20)) + seen(range(12, 18), track=2, label="face", box=FACE_BOX)
    events = build(rows + seen(range(60, 70), track=3, label="car"))
    assert len(events) == 2
    write_events(tmp_path / "events.parquet", events)
    assert read_events(tmp_path / "events.parquet") == events
    write_events(tmp_path / "events.parquet", [])
    assert read_events(tmp_path / "events.parquet") == []


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("min_detections", 0),
        ("min_detections", 1.5),
        ("min_duration_s", -1),
        ("max_gap_s", float("nan")),
        ("max_gap_s", "2 s"),
        ("face_containment", 0),
        ("face_containment", 1.5),
    ],
)
def test_an_impossible_rule_is_refused_with_its_value(rule: str, value: object) -> None:
    with pytest.raises(InvalidAnalysisSettings, match=rule) as refusal:
        EventRules(**{rule: value})  # type: ignore[arg-type]
    assert repr(value) in str(refusal.value)
