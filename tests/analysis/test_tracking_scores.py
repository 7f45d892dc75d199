"""The scores that benchmarks report mean what they say, and ours are good where truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.accuracy import TRACKERS, Footage, scored, synthetic
from bench.tracking_scores import Boxes, event_scores, track_scores
from capstone_dagster.analysis import Event

Presence = tuple[int, float, range]  # id, left edge, frames
FRAMES, INTERVAL_MS = 60, 200


def frames(presences: list[Presence]) -> list[Boxes]:
    return [
        Boxes(
            np.array([who for who, _, frames in presences if index in frames], dtype=np.int64),
            np.array(
                [(left, 100, left + 40, 200) for _, left, frames in presences if index in frames], dtype=float
            ).reshape(-1, 4),
        )
        for index in range(FRAMES)
    ]


def events(presences: list[Presence]) -> list[Event]:
    return [
        Event(
            event_id=f"{who}-{seen.start}", analysis_id="a", track_id=who, label="person",
            start_ms=seen.start * INTERVAL_MS, end_ms=seen[-1] * INTERVAL_MS, first_frame=seen.start,
            last_frame=seen[-1], sample_interval_ms=INTERVAL_MS, detections=len(seen), best_score=1,
            mean_score=1, best_ms=0, best_box=(0, 0, 1, 1), face_score=None, face_box=None,
            truncated_start=False, truncated_end=False, thumbnail_key="",
        )
        for who, _, seen in presences
    ]  # fmt: skip


ONE = (1, 100.0, range(10, 50))


@pytest.mark.parametrize(
    ("true", "found", "precision", "recall", "fragmentation", "errors_s"),
    [
        ([ONE], [(7, 102.0, range(10, 50))], 1, 1, 1, (0, 0)),
        ([ONE], [(7, 102.0, range(15, 48))], 1, 1, 1, (1, 0.4)),
        ([ONE], [], 0, 0, 0, None),
        ([ONE], [(7, 300.0, range(10, 50))], 0, 0, 0, None),
        # Two pieces of one visit: one is right, the other counts against precision.
        ([ONE], [(7, 100.0, range(10, 20)), (8, 100.0, range(21, 50))], 1 / 2, 1, 2, (2.2, 0)),
        # Unseen for longer than two seconds, the same person is two visits.
        ([ONE, (1, 100.0, range(4, 6))], [(7, 100.0, range(10, 50))], 1, 1, 1, (1.2, 0)),
        ([(1, 100.0, range(5)), (1, 100.0, range(20, 50))], [(7, 100.0, range(20, 50))], 1, 0.5, 1, (0, 0)),
        # One track over two people is of the one with whom it is longer.
        ([(1, 100.0, range(10)), (2, 100.0, range(10, 50))], [(7, 100.0, range(50))], 1, 0.5, 1, (2, 0)),
        # Mostly on nobody.
        ([(1, 100.0, range(10, 20))], [(7, 100.0, range(10, 50))], 0, 0, 0, None),
    ],
)  # fmt: skip
def test_events_are_scored_by_whose_they_are(
    true: list[Presence],
    found: list[Presence],
    precision: float,
    recall: float,
    fragmentation: float,
    errors_s: tuple[float, float] | None,
) -> None:
    times_ms = [index * INTERVAL_MS for index in range(FRAMES)]
    scores = event_scores(frames(true), frames(found), times_ms, events(found))
    assert scores["event_precision"] == pytest.approx(precision)
    assert scores["event_recall"] == pytest.approx(recall)
    assert scores["fragmentation"] == pytest.approx(fragmentation)
    if errors_s is None:
        assert np.isnan(scores["boundary_median_s"])
    else:
        assert scores["boundary_median_s"] == pytest.approx(sum(errors_s) / 2)


def test_tracks_are_scored_as_the_field_does() -> None:
    perfect = track_scores(frames([ONE]), frames([(5, 100.0, range(10, 50))]))
    assert (perfect["mota"], perfect["idf1"], perfect["hota"], perfect["ids"]) == (1, 1, 1, 1)
    halves = track_scores(frames([ONE]), frames([(5, 100.0, range(10, 30)), (6, 100.0, range(30, 50))]))
    assert halves["switches"] == 1
    assert halves["mota"] == pytest.approx(39 / 40)
    assert halves["idf1"] == pytest.approx(1 / 2)
    assert halves["hota"] == pytest.approx(0.5**0.5)


@pytest.fixture(scope="module")
def world() -> Footage:
    return synthetic(seed=7)


@pytest.mark.parametrize("fps", [10, 5, 2])
def test_visits_on_synthetic_footage_are_true_at_any_sampling_rate(world: Footage, fps: float) -> None:
    """Plain ByteTrack's IDF1 at two frames a second is 0.2; the floors leave room for other constants."""
    footage = world.sampled(fps)
    score = scored(footage, *TRACKERS["ours"](footage))
    assert score["mota"] >= 0.7
    assert score["idf1"] >= 0.7
    assert score["event_recall"] >= 0.8
    assert score["fragmentation"] <= 1.4
