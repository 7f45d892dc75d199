"""The tables that commands show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from capstone_dagster.outside_text import visible
from capstone_dagster.terminal import clock, move_text, settings_text
from capstone_dagster.wall_clock import time_source, wall_clock

if TYPE_CHECKING:
    from capstone_dagster.analysis.comparison import Comparison


def events_table(events: Sequence[Mapping[str, Any]]) -> Table:
    """Events with their videos' recording times: when, what, scores, and whether a face was seen."""
    several = len({event["video_id"] for event in events}) > 1
    table = _table(
        *(["video"] if several else []),
        *("start", "end", "what", "track", "seen", "best", "face", "cut off", "wall clock", "known from"),
    )
    for event in events:
        cut = "".join(
            word
            for word, is_cut in ((" start", event["truncated_start"]), (" end", event["truncated_end"]))
            if is_cut
        )
        cells = [_text(event["video_id"])] if several else []
        table.add_row(
            *cells,
            clock(event["start_ms"]),
            clock(event["end_ms"]),
            _text(event["label"]),
            str(event["track_id"]),
            f"{event['detections']}×",
            f"{event['best_score']:.2f}",
            "" if event["face_score"] is None else f"{event['face_score']:.2f}",
            cut.strip(),
            wall_clock(event["started_at"]),
            time_source(event["recorded_at_source"]) if event["started_at"] else "",
        )
    return table


def status_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Videos with state and progress; below, in full, why some failed and what others wait for."""
    table = _table("video", "external id", "camera", "state", "progress", "updated", "filmed", "known from")
    colours = {"done": "green", "failed": "red", "running": "cyan"}
    for row in rows:
        colour = colours.get(row["state"], "default")
        table.add_row(
            _text(row["video_id"]),
            _text(row["external_id"] or ""),
            _text(row["camera"]),
            _text(row["state"], style=colour),
            f"{row['progress']:.0%}",
            wall_clock(row["updated_at"]),
            wall_clock(row["recorded_at"]),
            time_source(row["recorded_at_source"]) if row["recorded_at"] else "",
        )
    reasons = [
        Text.assemble("\n", (row["video_id"], "bold"), f" {visible(reason)}")
        for row in rows
        if (reason := _reason(row)) is not None
    ]
    return Group(table, *reasons)


def _reason(row: Mapping[str, Any]) -> str | None:
    """Why a video failed, what it waits for or what is wrong with its file, if known."""
    if row["failure_class"]:
        return f"failed ({row['failure_class']}): {row['message']}"
    if row["state"] == "done" and row["message"]:
        return str(row["message"])
    return f"waits: {row['waiting_for']}" if row.get("waiting_for") else None


def analyses_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Analyses of one video with model and settings; the current one is marked."""
    table = _table("", "analysis", "model", "settings", "events", "published")
    for row in rows:
        table.add_row(
            _text("current" if row["is_current"] else "", style="green"),
            _text(row["analysis_id"][:12]),
            _text(row["model"]),
            _text(settings_text(row["settings"])),
            str(row["events"]),
            wall_clock(row["published_at"]),
        )
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Events that appeared, vanished or moved, in order of time."""
    table = _table("", "start", "end", "what", "track", "best", "how")
    rows = [("vanished", event, "") for event in comparison.vanished]
    rows += [("appeared", event, "") for event in comparison.appeared]
    rows += [("moved", pair.before, move_text(pair)) for pair in comparison.moved]
    colours = {"vanished": "red", "appeared": "green", "moved": "yellow"}
    for kind, event, how in sorted(rows, key=lambda row: (row[1].start_ms, row[0], row[1].track_id)):
        table.add_row(
            _text(kind, style=colours[kind]),
            clock(event.start_ms),
            clock(event.end_ms),
            _text(event.label),
            str(event.track_id),
            f"{event.best_score:.2f}",
            _text(how),
        )
    return table


def dead_letters_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Messages in the dead-letter queue."""
    table = _table("message", "since", "reason", "text")
    for row in rows:
        text = row["body"] if len(row["body"]) <= 60 else row["body"][:59] + "…"
        table.add_row(
            _text(row["message_id"][:8]),
            wall_clock(row["sent_ms"] / 1000),
            _text(row["reason"] or "delivered too often"),
            _text(text),
        )
    return table


def counts_table(counts: Mapping[str, int], *header: str) -> Table:
    """Names and numbers, in the given order."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(header[0])
    table.add_column(header[1], justify="right")
    for name, number in counts.items():
        table.add_row(_text(name), f"{number:,}")
    return table


def retention_table(rows: Sequence[Mapping[str, Any]], verb: str) -> Table:
    """Number of deleted items of each kind, with its setting."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("what", "setting", "days", verb):
        table.add_column(name, justify="right" if name in ("days", verb) else "left")
    for row in rows:
        number = f"{row['number']:,}{' or more' if row['more'] else ''}"
        kept = not row["days"]
        cells = ("for ever", "") if kept else (str(row["days"]), number)
        table.add_row(row["kind"], row["setting"], *cells)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    right = {"start", "end", "track", "seen", "best", "face", "progress", "events"}
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _text(text: str, style: str = "") -> Text:
    """A cell; what it shows may come from outside."""
    return Text(visible(text), style=style)
