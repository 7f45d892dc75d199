"""A notice of a watch as people get it: by mail, Slack, Telegram and others that `apprise` has a URL for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

from capstone_dagster.outside_text import visible
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.objects import ObjectStore
from capstone_dagster.storage.outbox import Notice
from capstone_dagster.wall_clock import wall_clock

# Chats refuse messages with more pictures or lines.
_PICTURES_AT_MOST = 4
_LINES_AT_MOST = 10


class People:
    """The recipients that the URLs lead to.

    Args:
        urls: apprise's, separated by blanks. They hold passwords: never log them.
        browse_url: where a message's links lead; None for messages without links.
    """

    def __init__(self, urls: str, objects: ObjectStore, zone: ZoneInfo, browse_url: str | None) -> None:
        self._urls = urls.split()
        self._objects = objects
        self._zone = zone
        self._browse_url = browse_url

    def tell(self, notice: Notice) -> str | None:
        """Send one message to every URL; why that failed for one of them, else None."""
        import apprise  # only a process that sends needs it

        services = apprise.Apprise()
        unusable = [number for number, url in enumerate(self._urls, 1) if not services.add(url)]
        if unusable:
            return f"CAPSTONE_MESSAGE_URLS: number {unusable[0]} is no URL that apprise understands."
        title, body = wording(notice, self._zone, self._browse_url)
        with tempfile.TemporaryDirectory(prefix="capstone-message-") as folder:
            pictures = self._pictures(notice, Path(folder))
            try:
                sent = services.notify(title=title, body=body, attach=pictures or None)
            except Exception as error:  # a plug-in's own defect, which must not hold up other notices
                return f"A message to people failed: {type(error).__name__}."
        return None if sent else "A service of CAPSTONE_MESSAGE_URLS did not take the message."

    def _pictures(self, notice: Notice, folder: Path) -> list[str]:
        keys = [each["thumbnail_key"] for each in notice.payload.get("matches", []) if each["thumbnail_key"]]
        found = []
        for number, key in enumerate(dict.fromkeys(keys[:_PICTURES_AT_MOST]), 1):
            # Without a picture the message is worth sending, too.
            with suppress(StorageError):
                path = folder / f"{number}.jpg"
                path.write_bytes(self._objects.get_bytes(key))
                found.append(str(path))
        return found


def wording(notice: Notice, zone: ZoneInfo, browse_url: str | None) -> tuple[str, str]:
    """A message's title and body."""
    payload: Mapping[str, Any] = notice.payload
    matches, events = payload["matches"], payload["events"]
    title = f"{payload['watch']}: {events} at {notice.camera or 'a deleted video'}"
    lines = []
    for each in matches[:_LINES_AT_MOST]:
        at = datetime.fromisoformat(each["started_at"]) if each["started_at"] else None
        when = wall_clock(at, zone) if at else f"{each['start_ms'] / 1000:.1f} s into {notice.key}"
        link = f" {browse_url.rstrip('/')}/events/{quote(each['event_id'], safe='')}" if browse_url else ""
        lines.append(f"{when}: {each['label']}" + (f", {each['zone']}" if each["zone"] else "") + link)
    if events > len(lines):
        lines.append(f"and {events - len(lines)} more")
    return visible(title), "\n".join(map(visible, lines))
