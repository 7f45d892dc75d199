"""Follows an upload to its end: the address of its page in Dagster's UI, and `capstone submit --wait`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

import typer

from capstone_dagster import terminal

if TYPE_CHECKING:
    from capstone_dagster.storage.database import Database
    from capstone_dagster.submit import Submission

_POLL_S = 1.0
_ENDED = ("done", "failed", "superseded", "cancelled")


def video_page(ui_url: str, video_id: str) -> str:
    """The address of a video's page in Dagster's UI."""
    return f"{ui_url.rstrip('/')}/assets/raw_videos?view=partitions&partition={quote(video_id, safe='')}"


def follow(database: Database, submissions: Sequence[Submission], *, as_json: bool) -> None:
    """Wait until the analyses of these uploads end, and print their events.

    Raises:
        Exit: one of them did not succeed; a sentence on stderr says why.
    """
    from capstone_dagster import terminal_tables as tables
    from capstone_dagster.storage.events import current_events
    from capstone_dagster.storage.videos import with_recording_times

    failures = [sentence for each in submissions if (sentence := _wait(database, each)) is not None]
    videos = [each.video_id for each in submissions]
    rows = database.transact(current_events, *videos) if len(failures) < len(videos) else []
    if as_json:
        terminal.print_json(rows)
    elif rows:
        terminal.print_table(tables.events_table(database.transact(with_recording_times, rows)))
    elif not failures:
        terminal.err.print("The analysis found no events.")
    for sentence in failures:
        terminal.note(sentence, style="red")
    if failures:
        raise typer.Exit(1)


def _wait(database: Database, submission: Submission) -> str | None:
    """Follow one upload to its end; the sentence that says why it failed, None if it succeeded."""
    from capstone_dagster.storage.video_status import status_of_upload

    video_id = submission.video_id
    with terminal.progress(f"{video_id}: uploaded, waiting for intake") as report:
        while True:
            row = database.transact(status_of_upload, submission.upload_id)
            if row is not None:
                if row["state"] in _ENDED:
                    break
                what = f"{video_id}: {row['state']}" + (f", {row['message']}" if row["message"] else "")
                report(what, row["progress"] if row["state"] == "running" else None)
            time.sleep(_POLL_S)
    if row["state"] == "done":
        if row["message"]:  # its file is damaged, and a part of it was analysed
            terminal.note(f"{video_id}: {row['message']}", style="yellow")
        return None
    why = f" ({row['failure_class']})" if row["failure_class"] else ""
    return f"{video_id} {row['state']}{why}: {row['message'] or 'no reason is recorded.'}"
