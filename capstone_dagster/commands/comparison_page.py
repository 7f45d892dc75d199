"""A comparison as one HTML file: what changed along the video, and pictures of it side by side.

Self-contained: pictures are data URIs, nothing is fetched, nothing runs. It holds faces, so it is as personal
as the video.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from capstone_dagster import terminal
from capstone_dagster.analysis import Event
from capstone_dagster.analysis.comparison import Comparison

Picture = Callable[[str], bytes | None]
"""The JPEG of a key in the object store; None if it is not there."""

# So many pairs of pictures make a page of some ten megabytes, which browsers still open at once.
_MOST_PICTURES = 400

_KINDS = {
    "vanished": "only in the first",
    "appeared": "only in the second",
    "moved": "in both, at another time or place",
    "matched": "in both, the same",
}

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; --vanished: #d1495b; --appeared: #2e933c;
  --moved: #e0a100; --matched: #8aa0b4; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } small, .quiet { color: var(--quiet); }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem 1rem .15rem 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; margin: 1rem 0; }
svg text { fill: currentColor; font-size: 11px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-top: 4px solid; border-radius: 6px; padding: .6rem; }
.views { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }
.view img, .none { width: 100%; height: 12rem; object-fit: contain; background: #8881; border-radius: 4px; }
.none { display: grid; place-items: center; color: var(--quiet); }
"""


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
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(video_id)}: two analyses compared</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{escape(video_id)}: two analyses compared</h1>",
            _analyses(before, after),
            f"<p><strong>{escape(comparison.told)}</strong></p>",
            _timeline(comparison),
            *_sections(comparison, picture),
            "</body></html>",
            "",
        ]
    )


def _analyses(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{which}</td><td><code>{escape(row['analysis_id'][:12])}</code></td>"
        f"<td>{escape(row['model'])} <small>{escape(row['model_sha256'][:8])}</small></td>"
        f"<td>{escape(terminal.settings_told(row['settings']))}</td>"
        f'<td class="number">{row["events"]} events</td>'
        f"<td>published {escape(terminal.local_time(row['published_at']))}</td>"
        f"<td>{'current' if row['is_current'] else ''}</td></tr>"
        for which, row in (("first", before), ("second", after))
    )
    return f"<table>{rows}</table>"


def _timeline(comparison: Comparison) -> str:
    """Both analyses along the video, each event a bar; overlapping ones in lanes."""
    first = [(event, "vanished") for event in comparison.vanished]
    second = [(event, "appeared") for event in comparison.appeared]
    for pair in comparison.matched:
        kind = "moved" if pair.moved else "matched"
        first.append((pair.before, kind))
        second.append((pair.after, kind))
    end_ms = max((event.end_ms for event, _ in first + second), default=0) or 1
    width, left, lane_height = 1000, 50, 9
    parts, top = [], 12
    for name, events in (("first", first), ("second", second)):
        lanes: list[int] = []
        parts.append(f'<text x="0" y="{top + 9}">{name}</text>')
        for event, kind in sorted(events, key=lambda each: (each[0].start_ms, each[0].end_ms)):
            lane = next((n for n, free in enumerate(lanes) if free <= event.start_ms), len(lanes))
            lanes[lane : lane + 1] = [event.end_ms + 1]
            x = left + (width - left) * event.start_ms / end_ms
            bar = max(2.0, (width - left) * (event.end_ms - event.start_ms) / end_ms)
            parts.append(
                f'<rect x="{x:.1f}" y="{top + lane * lane_height}" width="{bar:.1f}" height="7" rx="2" '
                f'fill="var(--{kind})"><title>{escape(_told(event))}, {kind}</title></rect>'
            )
        top += max(1, len(lanes)) * lane_height + 10
    marks = "".join(
        f'<text x="{left + (width - left) * share:.0f}" y="{top + 4}" '
        f'text-anchor="{anchor}">{terminal.clock(round(end_ms * share))}</text>'
        for share, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))
    )
    legend = " ".join(
        f'<span style="color: var(--{kind})">■</span> {kind} <small>({told})</small>'
        for kind, told in _KINDS.items()
    )
    return (
        f'<svg viewBox="0 0 {width} {top + 10}" role="img" aria-label="Events along the video">'
        f"{''.join(parts)}{marks}</svg><p>{legend}</p>"
    )


def _sections(comparison: Comparison, picture: Picture) -> Iterator[str]:
    left = _MOST_PICTURES
    cards: dict[str, list[tuple[Event | None, Event | None, str]]] = {
        "vanished": [(event, None, "") for event in comparison.vanished],
        "appeared": [(None, event, "") for event in comparison.appeared],
        "moved": [(pair.before, pair.after, terminal.move_told(pair)) for pair in comparison.moved],
    }
    for kind, rows in cards.items():
        if not rows:
            continue
        yield f'<h2 id="{kind}">{len(rows)} {kind} <small>{_KINDS[kind]}</small></h2><div class="cards">'
        for before, after, how in rows:
            shown = picture if left > 0 else _too_many
            left -= 1
            views = "".join(
                _view(name, event, shown) for name, event in (("first", before), ("second", after))
            )
            told = f"<p>{escape(how)}</p>" if how else ""
            yield (
                f'<div class="card" style="border-top-color: var(--{kind})">'
                f'<div class="views">{views}</div>{told}</div>'
            )
        yield "</div>"
    same = [pair for pair in comparison.matched if not pair.moved]
    if same:
        rows_told = "".join(
            f"<tr><td>{escape(_told(pair.before))}</td><td>{escape(_told(pair.after))}</td></tr>"
            for pair in same
        )
        yield (
            f"<details><summary>{len(same)} in both, the same</summary>"
            f"<table><tr><th>first</th><th>second</th></tr>{rows_told}</table></details>"
        )


def _view(name: str, event: Event | None, picture: Picture) -> str:
    if event is None:
        return f'<div class="view"><div class="none">not in the {name}</div></div>'
    jpeg = picture(event.thumbnail_key) if event.thumbnail_key else None
    shown = (
        '<div class="none">no picture</div>'
        if jpeg is None
        else f'<img alt="{escape(_told(event))}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode("ascii")}">'
    )
    return f'<div class="view">{shown}<small>{escape(_told(event))}</small></div>'


def _told(event: Event) -> str:
    return (
        f"{terminal.clock(event.start_ms)}–{terminal.clock(event.end_ms)} {event.label} {event.track_id}, "
        f"score {event.best_score:.2f}"
    )


def _too_many(key: str) -> bytes | None:
    return None
