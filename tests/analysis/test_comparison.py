"""Comparing two analyses of a video: what appeared, vanished and moved."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.analysis import Event
from capstone_dagster.analysis.comparison import Comparison, compare_events

LEFT, RIGHT = (0.1, 0.2, 0.2, 0.8), (0.7, 0.2, 0.8, 0.8)


def event(
    start_ms: int,
    end_ms: int,
    box: tuple[float, float, float, float] = LEFT,
    *,
    label: str = "person",
    track_id: int = 1,
    best_ms: int | None = None,
    interval_ms: float = 200.0,
) -> Event:
    return Event(
        event_id=f"{label}-{track_id}-{start_ms}",
        analysis_id="a",
        track_id=track_id,
        label=label,
        start_ms=start_ms,
        end_ms=end_ms,
        first_frame=0,
        last_frame=1,
        sample_interval_ms=interval_ms,
        detections=2,
        best_score=0.9,
        mean_score=0.8,
        best_ms=start_ms if best_ms is None else best_ms,
        best_box=box,
        face_score=None,
        face_box=None,
        truncated_start=False,
        truncated_end=False,
        thumbnail_key="",
    )


def counts(comparison: Comparison) -> tuple[int, int, int, int]:
    return (
        len(comparison.matched),
        len(comparison.moved),
        len(comparison.appeared),
        len(comparison.vanished),
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # matched, of them moved, appeared, vanished
        ([], [], (0, 0, 0, 0)),
        ([event(0, 4000)], [event(0, 4000, track_id=9)], (1, 0, 0, 0)),
        ([event(0, 4000)], [], (0, 0, 0, 1)),
        ([], [event(0, 4000)], (0, 0, 1, 0)),
        # Another label, another place or another time is somebody else.
        ([event(0, 4000)], [event(0, 4000, label="face")], (0, 0, 1, 1)),
        ([event(0, 4000)], [event(0, 4000, RIGHT)], (0, 0, 1, 1)),
        ([event(0, 4000)], [event(5000, 9000)], (0, 0, 1, 1)),
        # Up to a second is no move; nor is what the sampling cannot tell.
        ([event(0, 9000)], [event(1000, 9000, best_ms=1000)], (1, 0, 0, 0)),
        ([event(0, 9000)], [event(1001, 9000, best_ms=1001)], (1, 1, 0, 0)),
        ([event(0, 9000)], [event(0, 7999)], (1, 1, 0, 0)),
        ([event(0, 9000, interval_ms=1000)], [event(0, 7500, interval_ms=1000)], (1, 0, 0, 0)),
        # More than half a box aside is a move, unless there was time to walk there.
        ([event(0, 9000)], [event(0, 9000, (0.14, 0.2, 0.24, 0.8))], (1, 0, 0, 0)),
        ([event(0, 9000)], [event(0, 9000, (0.16, 0.2, 0.26, 0.8))], (1, 1, 0, 0)),
        ([event(0, 9000)], [event(0, 9000, (0.3, 0.2, 0.4, 0.8), best_ms=1000)], (1, 0, 0, 0)),
        # One presence in two pieces: the longer one is it.
        ([event(0, 9000)], [event(0, 2000), event(3000, 9000, best_ms=3000)], (1, 1, 1, 0)),
        # Two at one time: each is found where it was.
        (
            [event(0, 4000, LEFT, track_id=1), event(0, 4000, RIGHT, track_id=2)],
            [event(0, 4000, RIGHT, track_id=1), event(0, 4000, LEFT, track_id=2)],
            (2, 0, 0, 0),
        ),
    ],
)
def test_compare_tells_what_changed(
    before: list[Event], after: list[Event], expected: tuple[int, int, int, int]
) -> None:
    assert counts(compare_events(before, after)) == expected


def test_compare_pairs_for_the_whole_and_not_for_the_best_pair() -> None:
    """The one that fits both goes where the other has nobody else."""
    before = [event(0, 10_000, track_id=1), event(4000, 10_000, track_id=2, best_ms=4000)]
    after = [event(1000, 10_000, track_id=1, best_ms=1000), event(7000, 10_000, track_id=2, best_ms=7000)]
    comparison = compare_events(before, after)
    assert [(pair.before.track_id, pair.after.track_id) for pair in comparison.matched] == [(1, 1), (2, 2)]


def test_compare_says_by_how_much_it_moved() -> None:
    (pair,) = compare_events(
        [event(2000, 9000)], [event(500, 9500, (0.16, 0.2, 0.26, 0.8), best_ms=2000)]
    ).moved
    assert (pair.start_shift_ms, pair.end_shift_ms) == (-1500, 500)
    assert pair.place_shift == pytest.approx(0.6)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x1, y1 = draw(st.integers(0, 15)) / 20, draw(st.integers(0, 15)) / 20
    return x1, y1, x1 + draw(st.integers(1, 4)) / 20, y1 + draw(st.integers(1, 4)) / 20


@st.composite
def presences(draw: st.DrawFn) -> Event:
    start = draw(st.integers(0, 20)) * 500
    last = start + draw(st.integers(0, 12)) * 500
    return event(
        start,
        last,
        draw(boxes()),
        label=draw(st.sampled_from(["person", "face"])),
        track_id=draw(st.integers(1, 5)),
        best_ms=draw(st.integers(start, last)),
        interval_ms=draw(st.sampled_from([0.0, 40.0, 200.0])),
    )


lists = st.lists(presences(), max_size=12)


@given(lists)
def test_compare_with_itself_matches_everything_and_moves_nothing(events: list[Event]) -> None:
    comparison = compare_events(events, [replace(each, event_id="other") for each in events])
    assert counts(comparison) == (len(events), 0, 0, 0)
    assert comparison.identical


@given(lists, lists)
def test_compare_is_the_same_the_other_way_round(before: list[Event], after: list[Event]) -> None:
    there, back = compare_events(before, after), compare_events(after, before)
    assert there.appeared == back.vanished
    assert there.vanished == back.appeared
    # By value: of events that are alike in everything any may be the one.
    assert Counter((pair.before, pair.after) for pair in there.matched) == Counter(
        (pair.after, pair.before) for pair in back.matched
    )
    assert len(there.moved) == len(back.moved)


@given(lists, lists, st.randoms(use_true_random=False))
def test_compare_does_not_mind_the_order(
    before: list[Event], after: list[Event], shuffled: random.Random
) -> None:
    other = compare_events(shuffled.sample(before, len(before)), shuffled.sample(after, len(after)))
    assert compare_events(before, after) == other


@given(lists, lists)
def test_compare_accounts_for_every_event_once(before: list[Event], after: list[Event]) -> None:
    comparison = compare_events(before, after)
    ours = [*comparison.vanished, *(pair.before for pair in comparison.matched)]
    theirs = [*comparison.appeared, *(pair.after for pair in comparison.matched)]
    assert sorted(map(id, ours)) == sorted(map(id, before))
    assert sorted(map(id, theirs)) == sorted(map(id, after))
    for pair in comparison.matched:
        assert pair.before.label == pair.after.label
        shared = min(pair.before.end_ms, pair.after.end_ms) - max(pair.before.start_ms, pair.after.start_ms)
        assert shared >= -200  # a frame's length
