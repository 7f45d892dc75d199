"""What the command line shows: tables, progress, and times as people read them. Data goes to stdout, the
rest to stderr, so that output can be piped."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from capstone_dagster.analysis.comparison import Comparison, Pair

Format = Literal["table", "json", "csv"]

# Names and messages from outside hold brackets and colons: no emoji codes anywhere, and markup only in
# sentences of our own.
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)


class Report(Protocol):
    """Takes what a long action is at: a sentence, and the share done (0–1) where it is known."""

    def __call__(self, what: str, fraction: float | None = None) -> None: ...


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """A line that shows what goes on, how far it is and for how long, while the block runs.

    Where nobody watches (a pipe, CI), each new sentence is printed once instead.
    """
    if not err.is_terminal:
        last = ""

        def tell(what: str, fraction: float | None = None) -> None:
            nonlocal last
            if what != last:
                err.print(f"… {what}", markup=False, soft_wrap=True)
                last = what

        tell(what)
        yield tell
        return
    said = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), said, BarColumn(30), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task(what, total=None)

        def report(what: str, fraction: float | None = None) -> None:
            if fraction is None:
                bars.update(task, description=what, total=None)
            else:
                bars.update(task, description=what, total=1.0, completed=fraction)

        yield report


def print_rows(
    rows: Sequence[Mapping[str, Any]], form: Format, table: RenderableType, *, columns: Sequence[str]
) -> None:
    """Print rows as JSON (a list of objects), CSV with a header, or the table made from them.

    Args:
        columns: the header of CSV, there without any row too.
    """
    if form == "json":
        print(json.dumps([dict(row) for row in rows], default=_plain, ensure_ascii=False, indent=2))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([cell(row[name]) for name in columns] for row in rows)
    else:
        out.print(table)


def events_table(events: Sequence[Mapping[str, Any]]) -> Table:
    """Events for people: when, what, how sure, and whether a face was seen."""
    several = len({event["video_id"] for event in events}) > 1
    names = ["video"] if several else []
    table = _table(*names, "start", "end", "what", "track", "seen", "best", "face", "cut off", "wall clock")
    for event in events:
        cut = "".join(
            word
            for word, is_cut in ((" start", event["truncated_start"]), (" end", event["truncated_end"]))
            if is_cut
        )
        cells = [Text(event["video_id"])] if several else []
        table.add_row(
            *cells,
            clock(event["start_ms"]),
            clock(event["end_ms"]),
            Text(event["label"]),
            str(event["track_id"]),
            f"{event['detections']}×",
            f"{event['best_score']:.2f}",
            "" if event["face_score"] is None else f"{event['face_score']:.2f}",
            cut.strip(),
            local_time(event["started_at"]),
        )
    return table


def status_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Videos and how far each is; below them, in full, why some failed and what others wait for."""
    table = _table("video", "external id", "camera", "state", "progress", "updated")
    colours = {"done": "green", "failed": "red", "running": "cyan"}
    for row in rows:
        colour = colours.get(row["state"], "default")
        table.add_row(
            Text(row["video_id"]),
            Text(row["external_id"] or ""),
            Text(row["camera"]),
            Text(row["state"], style=colour),
            f"{row['progress']:.0%}",
            local_time(row["updated_at"]),
        )
    reasons = [
        Text.assemble("\n", (row["video_id"], "bold"), f" {told}")
        for row in rows
        if (told := _reason(row)) is not None
    ]
    return Group(table, *reasons)


def _reason(row: Mapping[str, Any]) -> str | None:
    """Why a video failed, or what it waits for, where that is known."""
    if row["failure_class"]:
        return f"failed ({row['failure_class']}): {row['message']}"
    return f"waits: {row['waiting_for']}" if row.get("waiting_for") else None


def analyses_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Analyses of one video, by what they were made with; the current one is marked."""
    table = _table("", "analysis", "model", "settings", "events", "published")
    for row in rows:
        table.add_row(
            Text("current" if row["is_current"] else "", style="green"),
            Text(row["analysis_id"][:12]),
            Text(row["model"]),
            Text(settings_told(row["settings"])),
            str(row["events"]),
            local_time(row["published_at"]),
        )
    return table


def settings_told(settings: Mapping[str, Any]) -> str:
    """What an analysis was made with, in a few words; those that most questions are about."""
    fps, score = settings.get("sample_fps"), settings.get("min_score")
    words = [] if fps is None else ["every frame" if fps == 0 else f"{fps:g} frames/s"]
    words += ["motion gate"] if settings.get("motion_gate") else []
    words += [] if score is None else [f"score ≥ {score:g}"]
    return ", ".join(words)


def comparison_table(comparison: Comparison) -> Table:
    """What appeared, vanished and moved, in order of time."""
    table = _table("", "start", "end", "what", "track", "best", "how")
    rows = [("vanished", event, "") for event in comparison.vanished]
    rows += [("appeared", event, "") for event in comparison.appeared]
    rows += [("moved", pair.before, move_told(pair)) for pair in comparison.moved]
    colours = {"vanished": "red", "appeared": "green", "moved": "yellow"}
    for kind, event, how in sorted(rows, key=lambda row: (row[1].start_ms, row[0], row[1].track_id)):
        table.add_row(
            Text(kind, style=colours[kind]),
            clock(event.start_ms),
            clock(event.end_ms),
            Text(event.label),
            str(event.track_id),
            f"{event.best_score:.2f}",
            Text(how),
        )
    return table


def move_told(pair: Pair) -> str:
    """How a presence moved, in words: the times that shifted, and the place."""
    words = []
    for what, shift_ms, at_ms in (
        ("starts", pair.start_shift_ms, pair.after.start_ms),
        ("ends", pair.end_shift_ms, pair.after.end_ms),
    ):
        if shift_ms:
            words.append(f"{what} {shift_ms / 1000:+.1f} s at {clock(at_ms)}")
    if pair.place_shift > 0.05:
        words.append(f"best view {pair.place_shift:.1f} boxes aside")
    return ", ".join(words)


def dead_letters_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Messages that were given up."""
    table = _table("message", "since", "reason", "text")
    for row in rows:
        since = datetime.fromtimestamp(row["sent_ms"] / 1000).astimezone()
        text = row["body"] if len(row["body"]) <= 60 else row["body"][:59] + "…"
        table.add_row(
            Text(row["message_id"][:8]),
            local_time(since),
            Text(row["reason"] or "delivered too often"),
            Text(text),
        )
    return table


def counts_table(counts: Mapping[str, int], *header: str) -> Table:
    """Names and numbers, in their order."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(header[0])
    table.add_column(header[1], justify="right")
    for name, number in counts.items():
        table.add_row(Text(name), f"{number:,}")
    return table


def retention_table(rows: Sequence[Mapping[str, Any]], verb: str) -> Table:
    """What went of each kind, and by which setting."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("what", "setting", "days", verb):
        table.add_column(name, justify="right" if name in ("days", verb) else "left")
    for row in rows:
        number = f"{row['number']:,}{' or more' if row['more'] else ''}"
        kept = not row["days"]
        cells = ("for ever", "") if kept else (str(row["days"]), number)
        table.add_row(row["kind"], row["setting"], *cells)
    return table


def clock(ms: int) -> str:
    """Milliseconds of video as `m:ss.s`."""
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes}:{rest / 1000:04.1f}"


def local_time(time: datetime | None) -> str:
    """A moment in this machine's zone; nothing for None."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else ""


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    right = {"start", "end", "track", "seen", "best", "face", "progress", "events"}
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def cell(value: Any) -> Any:
    """A value as CSV has it: times as ISO 8601, lists as JSON."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return value.isoformat() if isinstance(value, datetime) else value
