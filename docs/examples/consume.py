"""Follows what is analysed, as a back end would: with psycopg, the reader's two views, and nothing else.

    python consume.py postgresql://backend@host:5432/capstone --state cursor.json

writes each newly analysed video's events as lines of JSON and remembers how far it is. Whatever happens, the
next start goes on there; a video may come twice, never not at all.
"""

import argparse
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

PAGE = 1000
# A transaction's times are those of its beginning: one that began earlier may become visible later. None of
# this database takes longer than its statement time-out of a minute.
OVERLAP = timedelta(minutes=2)

FINISHED = """
SELECT video_id, external_id, upload_id, updated_at FROM capstone.current_status
WHERE state = 'done' AND (updated_at, video_id) > (%(at)s, %(video_id)s)
ORDER BY updated_at, video_id LIMIT %(page)s
"""
EVENTS = """
SELECT * FROM capstone.current_events
WHERE video_id = %(video_id)s AND (start_ms, event_id) > (%(start_ms)s, %(event_id)s)
ORDER BY start_ms, event_id LIMIT %(page)s
"""


def finished(
    connection: psycopg.Connection[Any], since: datetime, *, page: int = PAGE
) -> Iterator[dict[str, Any]]:
    """Videos whose analysis was published after `since`, in that order, a page at a time."""
    last = {"at": since, "video_id": "", "page": page}
    while rows := connection.execute(FINISHED, last).fetchall():
        yield from rows
        last |= {"at": rows[-1]["updated_at"], "video_id": rows[-1]["video_id"]}


def events_of(
    connection: psycopg.Connection[Any], video_id: str, *, page: int = PAGE
) -> Iterator[dict[str, Any]]:
    """A video's events in order of their beginning, a page at a time."""
    last = {"video_id": video_id, "start_ms": -1, "event_id": "", "page": page}
    while rows := connection.execute(EVENTS, last).fetchall():
        yield from rows
        last |= {"start_ms": rows[-1]["start_ms"], "event_id": rows[-1]["event_id"]}


def follow(url: str, state: Path, *, once: bool, every_s: float, page: int) -> None:
    """Print what is new, again and again."""
    known: dict[str, str] = json.loads(state.read_text()) if state.exists() else {}
    while True:
        with psycopg.connect(url, row_factory=dict_row, autocommit=True) as connection:
            newest = max(map(datetime.fromisoformat, known.values()), default=None)
            since = newest - OVERLAP if newest else datetime.fromisoformat("1970-01-01T00:00:00+00:00")
            for video in finished(connection, since, page=page):
                if known.get(video["video_id"]) == video["updated_at"].isoformat():
                    continue  # the overlap: it was reported before
                # Its events replace all earlier events of this video.
                events = list(events_of(connection, video["video_id"], page=page))
                print(json.dumps({**video, "events": events}, default=str), flush=True)
                known[video["video_id"]] = video["updated_at"].isoformat()
                _keep(state, known)
        if once:
            return
        time.sleep(every_s)


def _keep(state: Path, known: dict[str, str]) -> None:
    """Remember what was reported, as far as the overlap can bring it again."""
    newest = max(map(datetime.fromisoformat, known.values()))
    for video_id, at in list(known.items()):
        if datetime.fromisoformat(at) < newest - OVERLAP:
            del known[video_id]
    unfinished = state.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(known))
    unfinished.replace(state)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("url", help="of a user who is a member of capstone_reader")
    arguments.add_argument("--state", type=Path, default=Path("consume.json"), help="where it remembers")
    arguments.add_argument("--once", action="store_true", help="stop when there is nothing new")
    arguments.add_argument("--every-s", type=float, default=10.0, help="seconds between looks")
    arguments.add_argument("--page", type=int, default=PAGE, help="rows a request")
    given = arguments.parse_args()
    follow(given.url, given.state, once=given.once, every_s=given.every_s, page=given.page)
