"""Wall-clock times as people read them: in CAPSTONE_TIMEZONE, with the offset. Data stays in UTC."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache
from zoneinfo import ZoneInfo


def wall_clock(moment: datetime | float | None, zone: ZoneInfo | None = None) -> str:
    """A moment to the second; nothing for None.

    >>> wall_clock(0, ZoneInfo("Asia/Seoul"))
    '1970-01-01 09:00:00+09:00'

    Args:
        moment: a number is seconds since 1970.
        zone: by default CAPSTONE_TIMEZONE.
    """
    if moment is None:
        return ""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    zone = zone or _configured_zone(os.environ.get("CAPSTONE_TIMEZONE"))
    return moment.astimezone(zone).isoformat(sep=" ", timespec="seconds")


def time_source(source: str | None) -> str:
    """In words, how the start of a recording is known.

    >>> time_source("container:android-end")
    'a tag of the file (android-end), not verified'
    """
    if source is not None and source.startswith("container"):
        rule = source.partition(":")[2]
        return f"a tag of the file{f' ({rule})' if rule else ''}, not verified"
    known = {"message": "the request", "metadata": "the object's metadata", "name": "the file's name"}
    return known.get(source or "", source or "not known")


@cache
def _configured_zone(_: str | None) -> ZoneInfo:
    """The zone of the settings, read once for each value of the variable."""
    # Imported here: commands import this module for each `--help`.
    from capstone_dagster.settings import ConfigurationError, Settings, read_settings

    try:
        return ZoneInfo(read_settings().timezone)
    except ConfigurationError:  # an error message shows times, too
        return ZoneInfo(Settings.model_fields["timezone"].default)
