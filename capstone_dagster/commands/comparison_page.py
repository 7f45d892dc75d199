"""A comparison of two analyses as one HTML file: a timeline of what changed, and pictures side by side.

The file is self-contained: pictures are data URIs, and it loads and executes nothing. It shows faces, so
it is personal data like the video.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from capstone_dagster import terminal
from capstone_dagster.analysis import Event
from capstone_dagster.analysis.comparison import Comparison
from capstone_dagster.wall_clock import wall_clock

Picture = Callable[[str], bytes | None]
"""The JPEG of a key in the object store; None if it is not there."""

# 400 pairs of pictures make a page of about ten megabytes, which browsers still open at once.
_MOST_PICTURES = 400
_KINDS = {
    "vanished": "only in the first",
    "appeared": "only in the second",
    "moved": "in both, at another time or place",
    "matched": "in both, the same",
}
# Sizes of the timeline in SVG units: width, column of names, height of a lane.
_WIDTH, _NAMES, _LANE = 1000, 50, 9
_MARKS = ((0.0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1.0, "end"))


@dataclass(frozen=True, slots=True)
class _Card:
    """An event of either analysis or of both, with its pictures in base64."""

    before: Event | None
    after: Event | None
    change: str
    before_jpeg: str | None
    after_jpeg: str | None


def comparison_page(
    video_id: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    comparison: Comparison,
    picture: Picture,
) -> str:
    """The page as text.

    Args:
        before, after: the rows of the two analyses.
        picture: gives an event's thumbnail.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "clock": terminal.clock,
        "described": _described,
        "wall_clock": wall_clock,
        "settings": terminal.settings_text,
    }
    return environment.get_template("comparison.html.j2").render(
        video_id=video_id,
        analyses=(("first", before), ("second", after)),
        summary=comparison.sentence,
        kinds=_KINDS,
        timeline=_timeline(comparison),
        sections=[(kind, cards) for kind, cards in _sections(comparison, picture) if cards],
        same=[pair for pair in comparison.matched if not pair.moved],
    )


def _timeline(comparison: Comparison) -> dict[str, Any]:
    """The position of each event's bar; overlapping events have separate lanes."""
    first = [(event, "vanished") for event in comparison.vanished]
    second = [(event, "appeared") for event in comparison.appeared]
    for pair in comparison.matched:
        kind = "moved" if pair.moved else "matched"
        first.append((pair.before, kind))
        second.append((pair.after, kind))
    end_ms = max((event.end_ms for event, _ in first + second), default=0) or 1
    per_ms = (_WIDTH - _NAMES) / end_ms
    rows, top = [], 12
    for which, events in (("first", first), ("second", second)):
        lanes: list[int] = []
        bars = []
        for event, kind in sorted(events, key=lambda each: (each[0].start_ms, each[0].end_ms)):
            lane = next((n for n, free_ms in enumerate(lanes) if free_ms <= event.start_ms), len(lanes))
            lanes[lane : lane + 1] = [event.end_ms + 1]
            bars.append(
                {
                    "event": event,
                    "kind": kind,
                    "x": _NAMES + per_ms * event.start_ms,
                    "y": top + lane * _LANE,
                    "width": max(2.0, per_ms * (event.end_ms - event.start_ms)),
                }
            )
        rows.append({"which": which, "y": top, "bars": bars})
        top += max(1, len(lanes)) * _LANE + 10
    marks = [
        {"x": round(_NAMES + (_WIDTH - _NAMES) * share), "anchor": anchor, "ms": round(end_ms * share)}
        for share, anchor in _MARKS
    ]
    return {"width": _WIDTH, "height": top + 10, "rows": rows, "marks": marks}


def _sections(comparison: Comparison, picture: Picture) -> Iterator[tuple[str, Sequence[_Card]]]:
    changes: dict[str, list[tuple[Event | None, Event | None, str]]] = {
        "vanished": [(event, None, "") for event in comparison.vanished],
        "appeared": [(None, event, "") for event in comparison.appeared],
        "moved": [(pair.before, pair.after, terminal.move_text(pair)) for pair in comparison.moved],
    }
    pictures_left = _MOST_PICTURES
    for kind, rows in changes.items():
        cards = []
        for before, after, change in rows:
            shown = picture if pictures_left > 0 else lambda _: None
            pictures_left -= 1
            cards.append(_Card(before, after, change, _jpeg(before, shown), _jpeg(after, shown)))
        yield kind, cards


def _jpeg(event: Event | None, picture: Picture) -> str | None:
    jpeg = picture(event.thumbnail_key) if event is not None and event.thumbnail_key else None
    return None if jpeg is None else base64.b64encode(jpeg).decode("ascii")


def _described(event: Event) -> str:
    return (
        f"{terminal.clock(event.start_ms)}–{terminal.clock(event.end_ms)} {event.label} {event.track_id}, "
        f"score {event.best_score:.2f}"
    )
