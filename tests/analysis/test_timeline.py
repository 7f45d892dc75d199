"""Time starts at zero and never runs backwards, whatever timestamps a file has or has not."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.analysis.footage.timeline import Timeline, milliseconds

MILLISECOND = Fraction(1, 1000)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> av.VideoStream:
    """A stream that says 25 frames a second."""
    path: Path = tmp_path_factory.mktemp("timeline") / "a.avi"
    with av.open(str(path), "w") as container:
        written = container.add_stream("mpeg4", rate=25)
        written.width, written.height, written.pix_fmt = 16, 16, "yuv420p"
        container.mux([*written.encode(av.VideoFrame(16, 16, "yuv420p")), *written.encode()])
    return av.open(str(path)).streams.video[0]


def placed(stream: av.VideoStream, stamps: Sequence[int | None], duration: int = 0) -> list[int]:
    timeline = Timeline(stream)
    times = []
    for stamp in stamps:
        frame = av.VideoFrame(16, 16, "yuv420p")
        frame.pts, frame.time_base, frame.duration = stamp, MILLISECOND, duration
        times.append(milliseconds(timeline.place(frame)))
    return times


@pytest.mark.parametrize(
    ("stamps", "duration", "times_ms"),
    [
        ([0, 40, 80], 0, [0, 40, 80]),
        ([7_000, 7_033, 7_067], 0, [0, 33, 67]),  # starts late
        ([-80, -40, 0], 0, [0, 40, 80]),  # starts early, as edit lists make it
        ([None, None, None], 0, [0, 40, 80]),  # none at all: by the stream's rate
        ([None, None, None], 100, [0, 100, 200]),  # or by how long frames last
        ([None, None, 5_000, 5_100], 0, [0, 40, 80, 180]),  # they begin late
        ([0, None, 90], 0, [0, 40, 90]),  # one is missing
        ([0, 40, 0, 40], 0, [0, 40, 80, 120]),  # joined recordings
        ([0, 40, 40, 80], 0, [0, 40, 40, 80]),  # two frames at one moment
        ([0, 40, 3_600_000], 0, [0, 40, 3_600_000]),  # nothing happened for an hour
        ([0, 40, 2**32 // 90 + 41], 0, [0, 40, 80]),  # more than half of MPEG-TS's period: set back
    ],
)
def test_timestamps_become_times_since_the_first_frame(
    stream: av.VideoStream, stamps: list[int | None], duration: int, times_ms: list[int]
) -> None:
    assert placed(stream, stamps, duration) == times_ms


@given(
    stamps=st.lists(st.none() | st.integers(-(2**40), 2**40), min_size=1, max_size=40),
    duration=st.integers(0, 10_000),
)
def test_time_starts_at_zero_and_never_runs_backwards(
    stream: av.VideoStream, stamps: list[int | None], duration: int
) -> None:
    times = placed(stream, stamps, duration)
    assert times[0] == 0
    assert times == sorted(times)


@given(
    steps=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=40),
    start=st.integers(-(2**40), 2**40),
)
def test_timestamps_that_only_grow_are_kept_exactly(
    stream: av.VideoStream, steps: list[int], start: int
) -> None:
    expected = [sum(steps[:count]) for count in range(len(steps))]
    assert placed(stream, [start + time for time in expected]) == expected
