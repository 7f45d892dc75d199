"""What one video may cost: footage of every kind stays far below, small files made to cost end soon."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from capstone_dagster.analysis import UndecodableVideo
from capstone_dagster.analysis.footage.budget import Budget

# Every frame as a picture, on a machine of 2 cores: bytes, pixels of a frame, frames, seconds of video,
# processor milliseconds a frame. Those of hours or of 8K are estimated from shorter and smaller files.
HD, UHD, EIGHT_K = 1920 * 1080, 3840 * 2160, 7680 * 4320
ORDINARY = {
    "an hour of 1080p": ("mov,mp4", 1_400_000_000, HD, 108_000, 3600, 6.0),
    "a covered lens for 8 h, one key frame": ("mov,mp4", 48_000_000, HD, 576_000, 28_800, 4.5),
    "a still desktop in 2160p, 60 fps, for an hour": ("mov,mp4", 150_000_000, UHD, 216_000, 3600, 11.0),
    "8K at 60 fps": ("mov,mp4", 100_000_000, EIGHT_K, 600, 10, 250.0),
    "240 fps": ("mov,mp4", 755_000, HD, 960, 4, 2.2),
    "one 8K picture of a camera": ("mov,mp4", 3_000_000, EIGHT_K, 1, 0, 900.0),
    "an animation of 300 frames in 1080p": ("gif", 21_000_000, HD, 300, 12, 7.7),
    "a recorded terminal, 10,000 frames": ("gif", 2_500_000, 1280 * 720, 10_000, 500, 1.2),
    "a spinner": ("gif", 4_000, 64 * 64, 30, 3, 0.1),
}
# What ends them, and after how many processor seconds at most.
HOSTILE = {
    "20,000 frames of 23 bytes in 1080p": ("gif", 460_020, HD, 20_000, 2000, 10.0, 35),
    "the same, of the largest size": ("gif", 460_020, 8192 * 8192, 20_000, 2000, 400.0, 35),
    "2 kB": ("gif", 2_300, 8192 * 8192, 100, 10, 500.0, 21),
    "a video of skipped blocks": ("mov,mp4", 460_000, 8192 * 8192, 100_000, 4000, 200.0, 136),
    "50 processor hours in a sample table": ("mov,mp4", 556_000, HD, 2_000_000, 80_000, 90.0, 160),
    "one frame that claims to last": ("matroska,webm", 460_000_000, HD, 100, 0, 2000.0, 23),
}


def pass_of(
    container: str, size: int, pixels: int, frames: int, seconds: float, cost_ms: float
) -> tuple[bool, float]:
    """Whether a pass reaches its end, and its processor seconds."""
    clock = itertools.count()
    budget = Budget(size, "a.mp4", container=container, clock=lambda: next(clock) * cost_ms / 1000)
    for index in range(1, frames + 1):
        try:
            budget.decoded(pixels, Fraction(index) * Fraction(seconds) / frames)
        except UndecodableVideo:
            return False, index * cost_ms / 1000
    return True, frames * cost_ms / 1000


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_footage_stays_far_below(name: str) -> None:
    container, size, pixels, frames, seconds, cost_ms = ORDINARY[name]
    step = max(1, frames // 1000)  # the same rates in fewer steps, on a machine that is three times as slow
    assert pass_of(container, size, pixels * step, frames // step, seconds, 3 * cost_ms * step)[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_made_to_cost_ends_soon(name: str) -> None:
    container, size, pixels, frames, seconds, cost_ms, most_s = HOSTILE[name]
    whole, spent_s = pass_of(container, size, pixels, frames, seconds, cost_ms)
    assert not whole
    assert spent_s <= most_s
