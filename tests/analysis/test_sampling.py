"""Frames are taken by time; with the motion gate only where something changed, beginnings to the frame."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.analysis import InvalidAnalysisSettings, frames
from capstone_dagster.analysis.footage.pixels import LUMA_SIZE, Luma
from capstone_dagster.analysis.footage.sampling import HEARTBEAT_S, Sampling, changed
from capstone_dagster.analysis.footage.video import Image

from .conftest import MakeClip

VARYING = [0, 40, 80, 500, 540, 1700, 1740, 1780, 3000, 3333, 3400]
BLANK = Luma(np.zeros(LUMA_SIZE[::-1], dtype=np.uint8), 255.0)


def textured(seed: int = 0, size: tuple[int, int] = LUMA_SIZE) -> np.ndarray:
    """Something like a street: smooth areas and edges, float64 luma."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(60, 190, (9, 16)), size, interpolation=cv2.INTER_NEAREST)
    fine = cv2.resize(rng.uniform(-15, 15, (45, 80)), size, interpolation=cv2.INTER_CUBIC)
    return coarse + fine


def as_luma(values: np.ndarray) -> Luma:
    return Luma(np.clip(np.rint(values), 0, 255).astype(np.uint8), 255.0)


def with_walker(values: np.ndarray, x: float, contrast: float = 40) -> np.ndarray:
    """Somebody far away: 5 x 15 of 320 x 180 values, which are 30 x 90 pixels of a 1080p frame."""
    walked = values.copy()
    walked[100:115, round(x) : round(x) + 5] += contrast
    return walked


def taken(
    scene: Callable[[int], np.ndarray],
    times_ms: list[int],
    sample_fps: float,
    *,
    noise: float = 0,
    seed: int = 1,
) -> list[int]:
    noises = np.random.default_rng(seed).normal(0, 1, (7, *LUMA_SIZE[::-1])) * noise
    sampling = Sampling(sample_fps, motion_gate=True)
    return [
        time_ms
        for index, time_ms in enumerate(times_ms)
        if sampling.takes(Fraction(time_ms, 1000), as_luma(scene(time_ms) + noises[index % 7]))
    ]


@pytest.mark.parametrize(
    ("sample_fps", "taken_ms"),
    [
        (0, VARYING),
        (5, [0, 500, 1700, 3000, 3333, 3400]),
        (1, [0, 1700, 3000]),
        (0.5, [0, 3000]),
        (1000, VARYING),
    ],
)
def test_sampling_goes_by_time(make_clip: MakeClip, sample_fps: float, taken_ms: list[int]) -> None:
    decoded = list(frames(make_clip("a.mp4", VARYING), sample_fps=sample_fps))
    assert [frame.pts_ms for frame in decoded if frame.image is not None] == taken_ms
    assert len(decoded) == len(VARYING)


def test_timestamps_rounded_to_milliseconds_do_not_shift_the_samples() -> None:
    sampling = Sampling(15)
    rounded_ms = [round(index * 1000 / 30) for index in range(300)]  # 30 a second, as Matroska stores it
    seen = [
        index for index, time_ms in enumerate(rounded_ms) if sampling.takes(Fraction(time_ms, 1000), BLANK)
    ]
    assert seen == list(range(0, 300, 2))


@given(
    times_ms=st.lists(st.integers(0, 60_000), min_size=1, max_size=60).map(sorted),
    sample_fps=st.sampled_from([0.1, 0.5, 1, 5, 7.5, 29.97]),
)
def test_each_tick_of_the_clock_takes_one_frame_at_most(times_ms: list[int], sample_fps: float) -> None:
    sampling = Sampling(sample_fps)
    seen = [time_ms for time_ms in times_ms if sampling.takes(Fraction(time_ms - times_ms[0], 1000), BLANK)]
    ticks = {int((time_ms - times_ms[0] + 1) * sample_fps / 1000 + 1e-9) for time_ms in times_ms}
    assert seen[0] == times_ms[0]
    assert len(seen) == len(ticks)


@pytest.mark.parametrize("sample_fps", [-1, float("nan"), float("inf")])
def test_impossible_sampling_is_refused(sample_fps: float) -> None:
    with pytest.raises(InvalidAnalysisSettings, match="sample_fps"):
        Sampling(sample_fps)


TEN_SECONDS = list(range(0, 10_000, 40))
HEARTBEATS = list(range(0, 10_000, 1000 * HEARTBEAT_S.numerator // HEARTBEAT_S.denominator))


@pytest.mark.parametrize("noise", [0, 3, 10])
@pytest.mark.parametrize("sample_fps", [0, 5])
@pytest.mark.parametrize(
    "light",
    [
        lambda time_ms: 1.0,
        lambda time_ms: 1 + 0.15 * (-1) ** (time_ms // 40),  # a lamp that flickers
        lambda time_ms: 1 - time_ms / 25_000,  # dusk
        lambda time_ms: 1.2 if time_ms > 5000 else 0.9,  # the camera's exposure steps
    ],
    ids=["even", "flicker", "dusk", "step"],
)
def test_where_nothing_happens_only_the_heartbeat_is_taken(
    light: Callable[[int], float], sample_fps: float, noise: float
) -> None:
    still = textured()
    assert taken(lambda time_ms: light(time_ms) * still, TEN_SECONDS, sample_fps, noise=noise) == HEARTBEATS


@pytest.mark.parametrize("sample_fps", [2, 5, 25])
@pytest.mark.parametrize("noise", [0, 2, 5])
def test_somebody_far_away_is_taken_from_the_first_frame_to_one_after_the_last(
    sample_fps: float, noise: float
) -> None:
    """He is there from 3.28 s to 6.64 s, wherever the clock ticks."""
    still = textured()

    def scene(time_ms: int) -> np.ndarray:
        return with_walker(still, 40 + time_ms / 50) if 3280 <= time_ms <= 6640 else still

    seen = taken(scene, TEN_SECONDS, sample_fps, noise=noise)
    assert 3280 in seen
    after = [time_ms for time_ms in seen if time_ms > 6640]
    assert after[0] <= 6640 + 1000 / sample_fps + 40
    assert after[1] - after[0] <= 1000 / sample_fps + 40  # one more, now that he is gone
    assert np.diff(after[1:]).min() >= 1000 * HEARTBEAT_S - 40
    there = [time_ms for time_ms in seen if 3280 <= time_ms <= 6640]
    assert np.diff(there).max() <= max(200, 1000 / sample_fps) + 40  # he needs 0.1 s for two of the values


@pytest.mark.parametrize(
    ("what", "later"),
    [
        ("a pan", lambda still: np.roll(still, 3, axis=1)),
        ("a cut", lambda still: textured(seed=7)),
        ("somebody close", lambda still: np.where(np.arange(320) < 220, 40.0, still)),
        ("somebody dark before dark ground", lambda still: with_walker(0.4 * still, 100, contrast=25) / 0.4),
        ("the lens is covered", lambda still: np.full_like(still, 5.0)),
    ],
)
def test_what_changes_the_picture_is_seen(what: str, later: Callable[[np.ndarray], np.ndarray]) -> None:
    rng = np.random.default_rng(3)
    still = textured()
    before, after = (as_luma(values + rng.normal(0, 2, values.shape)) for values in (still, later(still)))
    assert changed(before, after), what


@given(
    steps_ms=st.lists(st.integers(1, 3000), min_size=1, max_size=80),
    moving=st.lists(st.booleans(), min_size=80, max_size=80),
    sample_fps=st.sampled_from([0, 0.5, 1, 5, 7.5, 29.97]),
)
def test_the_gate_takes_some_of_the_ticks_and_never_waits_longer_than_its_heartbeat(
    steps_ms: list[int], moving: list[bool], sample_fps: float
) -> None:
    times_ms = [0, *np.cumsum(steps_ms).tolist()]
    bright = Luma(np.tile(np.uint8([0, 200]), (180, 160)), 255.0)
    sampling = Sampling(sample_fps, motion_gate=True)
    seen = [
        time_ms
        for time_ms, moves in zip(times_ms, [False, *moving], strict=False)
        if sampling.takes(Fraction(time_ms, 1000), bright if moves else BLANK)
    ]
    assert seen[0] == 0
    if sample_fps:
        ticks = [int((time_ms + 1) * sample_fps / 1000 + 1e-9) for time_ms in seen]
        assert len(set(ticks)) == len(ticks)
    longest_ms = max(1000 * float(HEARTBEAT_S), 1000 / sample_fps if sample_fps else 0)
    for time_ms in set(times_ms) - set(seen):
        latest = max(time for time in seen if time < time_ms)
        assert time_ms - latest < longest_ms + 2


@pytest.mark.parametrize("quality", ["18", "30", "40"])
def test_compression_is_no_motion_and_does_not_hide_any(make_clip: MakeClip, quality: str) -> None:
    """Through a real codec, jumping key frames included: still, somebody far away for two seconds, still."""
    still = np.clip(cv2.resize(textured(), (640, 360), interpolation=cv2.INTER_CUBIC), 0, 255)
    noise = np.random.default_rng(5).normal(0, 3, (8, 360, 640))

    def picture(index: int) -> Image:
        values = still + noise[index * 5 % 8]
        if 50 <= index < 100:
            values[200:230, 4 * index : 4 * index + 10] -= 50
        return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)

    clip = make_clip(
        "a.mp4",
        [index * 40 for index in range(175)],
        picture=picture,
        size=(640, 360),
        codec_options={"crf": quality, "g": "12", "preset": "veryfast"},
    )
    seen = [frame.pts_ms for frame in frames(clip, sample_fps=5, motion_gate=True) if frame.image is not None]
    assert 2000 in seen or 2040 in seen
    assert sum(2000 <= time_ms <= 4000 for time_ms in seen) >= 10
    assert sum(not 1990 <= time_ms <= 4400 for time_ms in seen) <= 6
