"""Points in time as people type them, in their own time zone."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from capstone_dagster.commands.moments import moment_of

NOW = datetime(2026, 1, 31, 14, 5, 30, tzinfo=ZoneInfo("Asia/Seoul"))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2h", "2026-01-31T12:05:30+09:00"),
        ("1d", "2026-01-30T14:05:30+09:00"),
        ("today", "2026-01-31T00:00:00+09:00"),
        ("yesterday", "2026-01-30T00:00:00+09:00"),
        ("yesterday 18:30", "2026-01-30T18:30:00+09:00"),
        ("9:30", "2026-01-31T09:30:00+09:00"),
        ("14:30:15", "2026-01-31T14:30:15+09:00"),
        ("2026-01-22", "2026-01-22T00:00:00+09:00"),
        ("2026-01-22 14:23", "2026-01-22T14:23:00+09:00"),
        ("2026-01-22T14:23:15+01:00", "2026-01-22T14:23:15+01:00"),
    ],
)
def test_what_people_type_is_a_moment_in_their_zone(text: str, meant: str) -> None:
    assert moment_of(text, NOW).isoformat() == meant


@pytest.mark.parametrize("text", ["", "soon", "tomorrow", "25:00", "yesterday noon", "999999d", "2026-02-30"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the option's check words it
        moment_of(text, NOW)
