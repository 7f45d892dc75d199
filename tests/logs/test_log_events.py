"""A log line's time is what it says of itself, whatever that is; batches are of one stream, within limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.logs.shipping.log_events import (
    event_time,
    first_batch,
    stream_name,
)
from capstone_dagster.logs.spool import Record

KEPT_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ('{"timestamp": "2026-01-22T14:23:15.123Z", "level": "INFO"}', 1_769_091_795_123),
        ('{"timestamp":"2026-01-22T23:23:15.123+09:00"}', 1_769_091_795_123),
        ('{"timestamp": "2026-01-22T14:23:15.123"}', 1_769_091_795_123),
        ('{"level": "INFO", "timestamp": "2026-01-22T14:23:15Z"}', 1_769_091_795_000),
        ('{"timestamp": "1969-01-01T00:00:00.000Z"}', KEPT_MS),
        ('{"timestamp": "0001-01-01T00:00:00.000+14:00"}', KEPT_MS),
        ('{"timestamp": "yesterday, or the day before"}', KEPT_MS),
        ('{"timestamp": 5}', KEPT_MS),
        ("no object at all", KEPT_MS),
        ("", KEPT_MS),
    ],
)
def test_the_time_of_a_log_line(text: str, time_ms: int) -> None:
    assert event_time(Record(KEPT_MS, text, 0)) == time_ms


@given(
    st.lists(
        st.builds(
            Record,
            st.integers(KEPT_MS, KEPT_MS + 3 * 24 * 3600 * 1000),
            st.integers(0, 262_000).map(lambda size: "x" * size),
            st.just(0),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_batches_of_log_lines_are_whole_and_within_the_limits(lines: list[Record]) -> None:
    batches = []
    rest = lines
    while rest:
        count = first_batch(rest)
        batches.append(rest[:count])
        rest = rest[count:]
    assert [line for batch in batches for line in batch] == lines
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        size = sum(len(line.text) + 26 for line in batch)
        assert size <= 1_048_576
        assert len({stream_name("host", "writer", line.time_ms) for line in batch}) == 1
        if following:  # no smaller than need be
            new_stream = stream_name("h", "w", following[0].time_ms) != stream_name(
                "h", "w", batch[0].time_ms
            )
            assert new_stream or size + len(following[0].text) + 26 > 1_048_576
