"""When a video was filmed, by the tags that its container has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# A clock that was never set says 1904 or 1970; no recording that is uploaded today was made before 1990.
_EARLIEST_YEAR = 1990
# A duration of more is a mistake.
_LONGEST = timedelta(days=7)
_APPLE_DATE = "com.apple.quicktime.creationdate"
_ANDROID = "com.android.version"


@dataclass(frozen=True, slots=True)
class Filmed:
    """The wall-clock time of a video's start.

    Attributes:
        at: with its zone.
        rule: `apple-creationdate`; `creation_time`; or `android-end`, where that tag is the end and the
            stated duration was subtracted.
    """

    at: datetime
    rule: str


def when_filmed(tags: Mapping[str, str], duration: timedelta | None) -> Filmed | None:
    """The best that the tags of a container say, or None.

    Apple's `creationdate` survives exports, which renew `creation_time`. Android writes `creation_time` when
    the recording ends.

    >>> when_filmed({"creation_time": "2025-05-26T10:37:26Z"}, timedelta(seconds=8)).at.isoformat()
    '2025-05-26T10:37:26+00:00'
    """
    apple = _moment(tags.get(_APPLE_DATE))
    if apple is not None:
        return Filmed(apple, "apple-creationdate")
    created = _moment(tags.get("creation_time"))
    if created is None:
        return None
    if _ANDROID in tags and duration is not None and duration < _LONGEST:
        return Filmed(created - duration, "android-end")
    return Filmed(created, "creation_time")


def _moment(text: str | None) -> datetime | None:
    """Without a zone the QuickTime and Matroska specifications mean UTC."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return moment if moment.year >= _EARLIEST_YEAR else None
