"""The texts by which records name a video, and how they stand in JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass

# Replaces its names in records that are about other videos too.
DELETED = "deleted-video"


@dataclass(frozen=True, slots=True)
class Names:
    """What a video is called in records.

    Attributes:
        also: its uploads' ids and its address.
        external_id: the back end's; too short, often, to be looked for within texts.
    """

    video_id: str
    also: tuple[str, ...] = ()
    external_id: str | None = None

    @property
    def forms(self) -> tuple[str, ...]:
        """Every spelling: as it is, within JSON, and within JSON that is text within JSON."""
        found: list[str] = []
        for name in (self.video_id, *self.also):
            found.append(name)
            for ascii_only in (True, False):
                quoted = json.dumps(name, ensure_ascii=ascii_only)[1:-1]
                found += [quoted, json.dumps(quoted, ensure_ascii=ascii_only)[1:-1]]
        return tuple(dict.fromkeys(found))

    @property
    def ids(self) -> Names:
        """Those by which a record is the video's: one address may begin another one's."""
        return Names(self.video_id, tuple(each for each in self.also if "://" not in each))

    def redacted(self, text: str) -> str:
        """The text with another name in place of each."""
        # The longest first: a name may be part of another.
        for form in sorted(self.forms, key=len, reverse=True):
            text = text.replace(form, DELETED)
        return text
