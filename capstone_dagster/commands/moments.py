"""Points in time as users type them after `--since`: `2026-01-31`, `14:30`, `2h`, `yesterday`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta

import typer

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DAYS = {"today": 0, "yesterday": 1}
_EXPECTED = "a date (2026-01-31), a time (14:30), both (2026-01-31T14:30+09:00), 2h, today or yesterday"
HOW_TO_TYPE = "2026-01-31, 14:30, 2h (ago), today, yesterday; in CAPSTONE_TIMEZONE"


def moment_of(text: str, now: datetime) -> datetime:
    """The moment that a text means; a day means its first moment, a time means today's.

    Args:
        now: the present moment in the user's time zone.

    Raises:
        ValueError: the text is no point in time.
    """
    word, _, clock = text.strip().partition(" ")
    if word in _DAYS:
        day = now.date() - timedelta(days=_DAYS[word])
        return datetime.combine(day, time.fromisoformat(clock) if clock else time(), now.tzinfo)
    if ago := re.fullmatch(r"(\d{1,5})([smhd])", text):  # more days would go back before all calendars
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    if re.fullmatch(r"\d\d?:\d\d(:\d\d)?", text):
        return datetime.combine(now.date(), time.fromisoformat(text.zfill(5)), now.tzinfo)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)


def checked(text: str | None) -> str | None:
    """Refuse a text that is no point in time, before settings or a database are needed.

    Raises:
        BadParameter: it is none.
    """
    if text is not None:
        try:
            moment_of(text, datetime.now(UTC))
        except ValueError as error:
            raise typer.BadParameter(f"expected {_EXPECTED}; got {text!r}") from error
    return text


def read_moment(text: str | None) -> datetime | None:
    """The moment that a checked option names, in CAPSTONE_TIMEZONE."""
    if text is None:
        return None
    from zoneinfo import ZoneInfo

    from capstone_dagster.settings import read_settings

    return moment_of(text, datetime.now(ZoneInfo(read_settings().timezone)))
