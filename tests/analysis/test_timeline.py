"""Time starts at the container's zero and never runs backwards, whatever timestamps a file has or has not."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.analysis.footage.timeline import Timeline

MILLISECOND = Fraction(1, 1000)


def placed(
    shown: Sequence[int | None], duration: int = 0, *, sent: Sequence[int] | None = None, **said: int | bool
) -> list[int]:
    """The times of frames with these timestamps; `sent` has those of packets, where in another order."""
    first = next((stamp for stamp in shown if stamp is not None), 0)
    said = {"zero": first, **said}
    timeline = Timeline(time_base=MILLISECOND, rate=Fraction(25), **said)  # type: ignore[arg-type]
    for stamp in shown if sent is None else sent:
        timeline.expect(stamp)
    return [timeline.place(stamp, duration) for stamp in shown]


STEADY = list(range(0, 800, 40))
SLOW = [0, 1_000, 3_000, 4_000, 5_000, 6_000]


def glitched(*changes: tuple[int, int]) -> list[int]:
    stamps = list(STEADY)
    for place, by in changes:
        stamps[place] += by
    return stamps


@pytest.mark.parametrize(
    ("stamps", "times_ms"),
    [
        ([0, 40, 80], [0, 40, 80]),
        ([7_000, 7_033, 7_067], [0, 33, 67]),
        ([-80, -40, 0], [0, 40, 80]),
        ([None, None, None], [0, 40, 80]),
        ([None, None, 5_000, 5_100], [0, 40, 80, 100]),
        ([0, None, 90], [0, 40, 90]),
        ([0, 40, 40, 80], [0, 40, 40, 80]),
        ([*STEADY, *STEADY], [*STEADY, *(800 + time for time in STEADY)]),
        ([*SLOW, *SLOW], [*SLOW, *(7_000 + time for time in SLOW)]),
        (
            [0, 40, 120, 80, 200, 160, 280, 240, 360, 320],
            [0, 40, 120, 160, 200, 240, 280, 320, 360, 400],
        ),
        ([0, 40, 3_600_000, 3_600_040, 3_600_080], [0, 40, 3_600_000, 3_600_040, 3_600_080]),
        ([0, 40, *(2**32 // 90 + time for time in (41, 81, 121))], [0, 40, 80, 120, 160]),
        (glitched((5, 37_600_000)), STEADY),
        (glitched((5, 30_000)), STEADY),
        (glitched((5, -190)), STEADY),
        (glitched((5, -90_000)), STEADY),
        (glitched((5, 60_000), (6, 60_000), (7, 60_000)), STEADY),
        (glitched((5, 60_000), (6, -60_000), (12, 5_000)), STEADY),
        (glitched((19, 60_000)), STEADY),
        (glitched((19, -300)), STEADY),
    ],
    ids=[
        "as they are",
        "late start",
        "early start, as edit lists make it",
        "no timestamps",
        "timestamps begin late",
        "one is missing",
        "two at one moment",
        "joined recordings",
        "joined recordings, a frame a second",
        "back and forth",
        "an hour's pause",
        "MPEG-TS's clock set back",
        "one frame hours ahead",
        "one frame seconds ahead",
        "one frame a little back",
        "one frame far back",
        "three frames ahead",
        "several glitches",
        "the last frame ahead",
        "the last frame back",
    ],
)
def test_timestamps_become_times(stamps: list[int | None], times_ms: list[int]) -> None:
    assert placed(stamps) == times_ms


def test_frames_without_timestamps_last_as_long_as_they_say() -> None:
    assert placed([None, None, None], 100) == [0, 100, 200]


def test_a_last_frame_is_believed_where_the_container_states_its_end() -> None:
    assert placed([0, 40, 12_000], ends=12_040) == [0, 40, 12_000]


def test_pictures_that_begin_after_the_sound_keep_their_time() -> None:
    assert placed([20_000, 20_040, 20_080], zero=0) == [20_000, 20_040, 20_080]


@pytest.mark.parametrize("offset", [0, 40], ids=["from zero", "from the second tick"])
def test_timestamps_in_decoding_order_are_sorted(offset: int) -> None:
    """Recorders that know no B-frames write when a frame was encoded; the decoder puts frames in order."""
    sent = [time + offset for time in STEADY]
    shown = [0, 80, 120, 40, 200, 240, 160, 320, 360, 280, 440, 480, 400, 560, 600, 520, 680, 720, 640, 760]
    times = placed([time + offset for time in shown], sent=sent, zero=0, begins=0, reorders=True)
    assert times == STEADY


def test_frames_that_never_came_do_not_delay_those_in_decoding_order() -> None:
    sent = list(range(0, 8_000, 40))
    shown = [time for time in sent if time not in range(400, 1_200)]
    times = placed(shown, sent=sent, begins=0, reorders=True)
    assert times[-1] >= sent[-1] - 17 * 40


@given(
    stamps=st.lists(st.none() | st.integers(-(2**40), 2**40), min_size=1, max_size=40),
    duration=st.integers(0, 10_000),
    reorders=st.booleans(),
)
def test_time_never_runs_backwards(stamps: list[int | None], duration: int, reorders: bool) -> None:
    times = placed(stamps, duration, reorders=reorders)
    assert times[0] == 0
    assert times == sorted(times)


@given(steps=st.lists(st.integers(0, 1000), min_size=1, max_size=40), start=st.integers(-(2**40), 2**40))
def test_timestamps_that_only_grow_are_kept_exactly(steps: list[int], start: int) -> None:
    expected = [sum(steps[:count]) for count in range(len(steps))]
    assert placed([start + time for time in expected]) == expected
