"""What a published analysis changed against the one before it, for the materialisation of `events`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import dagster as dg

from capstone_dagster.analysis import Event
from capstone_dagster.analysis.comparison import Comparison, Pair, compare_events
from capstone_dagster.assets.steps.references import PublishedAnalysis
from capstone_dagster.failures.classes import sentence
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.events import events_of

log = logging.getLogger("capstone.analysis")

# What differs more is looked at with pictures: `capstone compare --html`.
_ROWS_SHOWN = 20


def of_comparison(
    published: PublishedAnalysis,
    events: Sequence[Event],
    services: Services,
    *,
    prefix: str = "",
    picture: Callable[[str], str] = lambda key: "",
) -> dict[str, int | str | dg.MetadataValue[str]]:
    """The comparison with the analysis of the same upload that was asked for before; empty without one.

    Never raises: the events are published already.

    Args:
        prefix: of the events' thumbnail keys.
        picture: the Markdown of a thumbnail, by its whole key; empty where there is none to show.
    """
    try:
        analyses = services.database.transact(analyses_of, published.video_id)
        this = next((row for row in analyses if row["analysis_id"] == published.analysis_id), None)
        others = [
            row
            for row in analyses
            if this is not None
            and row["analysis_id"] != this["analysis_id"]
            and row["upload_id"] == this["upload_id"]
        ]
        if not others:
            return {}
        previous = max(others, key=lambda row: row["requested_at"])
        before = [Event.of(row) for row in services.database.transact(events_of, previous["analysis_id"])]
        after = [replace(each, thumbnail_key=prefix + each.thumbnail_key) for each in events]
        comparison = compare_events(before, after)
    except Exception as error:  # law: what only observes fails no run
        log.warning(
            f"What changed against the previous analysis is not known: {sentence(error)}",
            extra={"action": "comparison.failed", "video_id": published.video_id},
        )
        return {}
    return {
        "compared_with": previous["analysis_id"],
        **{f"{what}_events": count for what, count in comparison.counts.items()},
        "changes": dg.MetadataValue.md(_described(comparison, published, previous["analysis_id"], picture)),
    }


def _described(
    comparison: Comparison, published: PublishedAnalysis, previous: str, picture: Callable[[str], str]
) -> str:
    command = (
        f"capstone compare {published.video_id} --from {previous[:12]} --to {published.analysis_id[:12]} "
        "--html changes.html"
    )
    lines = [comparison.sentence]
    if not comparison.identical:
        rows: list[tuple[str, Event, Event, str]] = [
            *(("vanished", event, event, "") for event in comparison.vanished),
            *(("appeared", event, event, "") for event in comparison.appeared),
            *(("moved", pair.before, pair.after, _moved(pair)) for pair in comparison.moved),
        ]
        rows.sort(key=lambda row: (row[1].start_ms, row[0], row[1].track_id))
        lines += ["", "| | start | end | label | track | now | |", "|---|---:|---:|---|---:|---|---|"]
        for kind, before, after, how in rows[:_ROWS_SHOWN]:
            # Of what moved, how it was seen best before and now.
            keys = dict.fromkeys((before.thumbnail_key, after.thumbnail_key))
            shown = " ".join(filter(None, (picture(key) for key in keys if key)))
            lines.append(
                f"| {kind} | {before.start_ms / 1000:.1f} s | {before.end_ms / 1000:.1f} s | {before.label} "
                f"| {before.track_id} | {how} | {shown} |"
            )
        if len(rows) > _ROWS_SHOWN:
            lines += ["", f"{len(rows) - _ROWS_SHOWN} more are not shown."]
    return "\n".join([*lines, "", f"With all pictures: `{command}`"])


def _moved(pair: Pair) -> str:
    return f"{pair.after.start_ms / 1000:.1f}–{pair.after.end_ms / 1000:.1f} s, track {pair.after.track_id}"
