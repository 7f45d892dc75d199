"""What a materialisation shows in Dagster's UI of the work it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from capstone_dagster.analysis import Event
from capstone_dagster.assets.references import DetectionsReference, PublishedAnalysis
from capstone_dagster.services import Services

Metadata = dict[str, Any]

# A table longer than this is read in SQL, not in a browser.
_ROWS_SHOWN = 50


def of_frames(
    done: DetectionsReference, services: Services, times: Mapping[str, dg.MetadataValue[Any]]
) -> Metadata:
    """`times`: when the first and the last frame were analysed, where any was."""
    url = services.objects.url
    return {
        **_common(done),
        "frames_decoded": done.summary["frames_decoded"],
        "frames_analyzed": done.summary["frames_analyzed"],
        "truncated": done.summary["truncated"],
        "decode_errors": done.summary["decode_errors"],
        "duration_s": done.summary["duration_ms"] / 1000,
        "frames": dg.MetadataValue.path(url(done.prefix + "frames.parquet")),
        "contact_sheet": dg.MetadataValue.path(url(done.prefix + "contact_sheet.jpg")),
        **times,
    }


def of_detections(done: DetectionsReference, services: Services) -> Metadata:
    summary = done.summary
    return {
        **_common(done),
        "detections": summary["detections"],
        "tracks": summary["tracks"],
        "seconds": summary["seconds"],
        "frames_per_second": summary["frames_decoded"] / max(summary["seconds"], 1e-9),
        "model": summary["model"],
        "device": summary["device"],
        "backend": summary["backend"],
        "decoder": summary["decoder"],
        "cpu_fallback": summary["cpu_fallback"] or "no",
        "parquet": dg.MetadataValue.path(services.objects.url(done.prefix + "detections.parquet")),
    }


def of_publication(published: PublishedAnalysis, events: Sequence[Event]) -> Metadata:
    return {
        "events": published.events,
        "analysis_id": published.analysis_id,
        "current": published.current,
        "published_at": dg.MetadataValue.timestamp(published.published_at),
        "table": dg.MetadataValue.md(_table(events)),
    }


def _common(done: DetectionsReference) -> Metadata:
    return {"detection_id": done.detection_id, "reused": done.reused}


def _table(events: Sequence[Event]) -> str:
    rows = ["| start | end | label | track | score | face |", "|---:|---:|---|---:|---:|---:|"]
    for event in events[:_ROWS_SHOWN]:
        face = "" if event.face_score is None else f"{event.face_score:.2f}"
        rows.append(
            f"| {event.start_ms / 1000:.1f} s | {event.end_ms / 1000:.1f} s | {event.label} "
            f"| {event.track_id} | {event.best_score:.2f} | {face} |"
        )
    return "\n".join(rows)
