"""What a materialisation shows in Dagster's UI of the work it stands for: numbers that plot, pictures, links.

Whole numbers and floats are drawn over time on an asset's page. Pictures are small copies within the text:
they lie in Dagster's database, where each materialisation has at most :data:`MOST_PICTURE_BYTES` of them.
"""

from __future__ import annotations

import inspect
import warnings
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import dagster as dg

from batch_gpu.jobs import JOB_ID_TAG, LOG_STREAM_TAG
from batch_gpu.links import job_url, log_url
from capstone_dagster.analysis import Event, shrunk
from capstone_dagster.assets.shown.changes import of_comparison
from capstone_dagster.assets.shown.columns import of_materialization
from capstone_dagster.assets.steps.measurements import gpu_cost, numbers
from capstone_dagster.assets.steps.references import (
    DetectionsReference,
    EventsReference,
    PublishedAnalysis,
    recording_start,
)
from capstone_dagster.catalog.log_groups import VIDEO_ANALYSIS
from capstone_dagster.outside_text import markdown
from capstone_dagster.services import Services
from capstone_dagster.storage.events import events_of
from capstone_dagster.wall_clock import time_source, wall_clock

Metadata = dict[str, Any]

# The team to ask first, as the runbook names it: it maintains models, cameras and rules.
OWNERS = ["team:video-pipeline"]

# A hundred thousand videos, and each once more with a new model, are 20 GB at this rate: what a small RDS
# disk has. Base64 included.
MOST_PICTURE_BYTES = 100_000
# A table longer than this is read in SQL, not in a browser.
_ROWS_SHOWN = 50
_SHEET_SIDE = 1200
# Tall enough to know somebody again, in a row of a table.
_THUMBNAIL_SIDE = 96
_THUMBNAIL_BYTES = 4_000
# Of these, for what an analysis has changed: some ten thumbnails; `capstone compare --html` shows all.
_CHANGES_BYTES = 30_000
# A contact sheet at a glance.
_VIDEO_SIDE = 480
_VIDEO_PICTURE_BYTES = 24_000
# Base64 makes four bytes of three.
_BASE64 = 4 / 3


def of_video(done: DetectionsReference, services: Services) -> dg.AssetObservation:
    """Of `raw_videos`, what is known once the pass has seen the video: how an operator finds it again."""
    upload, summary = done.upload, done.summary
    name = f"{upload.external_id}: {upload.key}" if upload.external_id else upload.key
    jpeg = _picture(
        done.prefix + "contact_sheet.jpg", services, side=_VIDEO_SIDE, most_bytes=_VIDEO_PICTURE_BYTES
    )
    return dg.AssetObservation(
        "raw_videos",
        partition=upload.video_id,
        description=f"{name}, {summary.duration_ms / 1000:.1f} s, {summary.width} × {summary.height}",
        metadata={
            **({"external_id": upload.external_id} if upload.external_id else {}),
            "camera": upload.camera,
            "duration_s": summary.duration_ms / 1000,
            "resolution": f"{summary.width} × {summary.height}",
            **_recorded(*recording_start(done), services),
            "picture": dg.MetadataValue.md("no picture" if jpeg is None else _shown(jpeg, upload.key)),
            "object": _link(upload.url, services),
            **_page(upload.video_id, services),
            "upload_id": upload.upload_id,
        },
    )


def of_frames(
    done: DetectionsReference,
    services: Services,
    times: Mapping[str, dg.MetadataValue[Any]],
    tags: Mapping[str, str],
) -> Metadata:
    """Of `extracted_frames`.

    Args:
        times: when the first and the last frame were analysed, where any was.
        tags: the run's.
    """
    summary = done.summary
    return {
        **_common(done),
        **numbers(summary, "frames_decoded", "frames_analyzed", "truncated"),
        **numbers(summary, "decode_errors", "corrupt_frames", "size_changes"),
        **({"track": summary.track} if summary.track else {}),
        "duration_s": summary.duration_ms / 1000,
        **numbers(summary, "width", "height", "codec"),
        "video": _link(done.upload.url, services),
        **_page(done.upload.video_id, services),
        **_file("frames", done.prefix + "frames.parquet", summary.frames_decoded, services),
        **times,
        **_whereabouts(tags, services),
    }


def of_detections(done: DetectionsReference, services: Services, tags: Mapping[str, str]) -> Metadata:
    """Of `detections`; what a GPU did and cost is that of this run, nothing if the detections were there."""
    summary = done.summary
    gpu_seconds, cost_usd = gpu_cost(summary.device, 0.0 if done.reused else summary.seconds, services)
    sheet = done.prefix + "contact_sheet.jpg"
    return {
        **_common(done),
        "contact_sheet": _sheet(sheet, services),
        **_page(done.upload.video_id, services),
        **numbers(summary, "detections", "tracks"),
        "detections_per_minute": round(60_000 * summary.detections / max(summary.duration_ms, 1), 1),
        "seconds": round(summary.seconds, 3),
        "frames_per_second": round(summary.frames_decoded / max(summary.seconds, 1e-9), 1),
        "model_load_seconds": round(summary.model_load_seconds, 3),
        "gpu_seconds": round(gpu_seconds, 3),
        # Fractions of a cent: a short video costs no more.
        **({} if cost_usd is None else {"cost_usd": round(cost_usd, 6)}),
        **numbers(summary, "model", "model_sha256", "device", "backend", "decoder", "batch_size"),
        "cpu_fallback": summary.cpu_fallback or "no",
        **_file("parquet", done.prefix + "detections.parquet", summary.detections, services),
        "full_contact_sheet": _link(services.objects.url(sheet), services),
        **_whereabouts(tags, services),
    }


def of_publication(
    published: PublishedAnalysis,
    events: Sequence[Event],
    derived: EventsReference,
    services: Services,
    tags: Mapping[str, str],
) -> Metadata:
    """Of `events`."""
    detections = derived.detections
    latency_s = (published.published_at - detections.upload.uploaded_at).total_seconds()
    changed = _Thumbnails(services, _CHANGES_BYTES)
    compared = of_comparison(published, events, services, prefix=detections.prefix, picture=changed)
    pictures = _Thumbnails(services, MOST_PICTURE_BYTES - 1000 - (_CHANGES_BYTES if compared else 0))
    return {
        "events": published.events,
        "table": dg.MetadataValue.md(
            _table(events, lambda key: pictures(detections.prefix + key), derived.recorded_at, services)
        ),
        "rows": published.rows,
        "persons": sum(event.label == "person" for event in events),
        "faces": sum(event.label == "face" or event.face_score is not None for event in events),
        **({"upload_to_persisted_s": round(latency_s, 1)} if published.first else {}),
        "analysis_id": published.analysis_id,
        "detection_id": detections.detection_id,
        "current": published.current,
        **compared,
        "camera": detections.upload.camera,
        **_recorded(derived.recorded_at, derived.recorded_at_source, services),
        "published_at": dg.MetadataValue.timestamp(published.published_at),
        "video": _link(detections.upload.url, services),
        **_page(detections.upload.video_id, services),
        **_file("parquet", derived.prefix + "events.parquet", published.events, services),
        **_whereabouts(tags, services),
    }


def of_rollback(
    analysis: Mapping[str, Any], services: Services, *, replaced: str | None, by: str
) -> Metadata:
    """Of `events`, where an earlier analysis was made current again.

    Args:
        analysis: its row of `analyses`.
        replaced: the one that was current before.
        by: whose order it was.
    """
    rows = services.database.transact(events_of, analysis["analysis_id"])
    events = [Event.of(row) for row in rows]
    recorded_at = next((row["started_at"] - _ms(row["start_ms"]) for row in rows if row["started_at"]), None)
    pictures = _Thumbnails(services, MOST_PICTURE_BYTES - 1000)
    parquet = f"analyses/{analysis['analysis_id']}/events.parquet"
    return {
        "events": analysis["events"],
        "rolled_back_by": by,
        "analysis_id": analysis["analysis_id"],
        **({"replaced": replaced} if replaced else {}),
        "current": True,
        "table": dg.MetadataValue.md(_table(events, pictures, recorded_at, services)),
        "persons": sum(event.label == "person" for event in events),
        "faces": sum(event.label == "face" or event.face_score is not None for event in events),
        "detection_id": analysis["detection_id"],
        "model": analysis["model"],
        "model_sha256": analysis["model_sha256"],
        "published_at": dg.MetadataValue.timestamp(analysis["published_at"]),
        **_file("parquet", parquet, analysis["events"], services),
    }


def code_of(functions: Mapping[str, Callable[..., Any]]) -> Metadata:
    """Where in the code an asset's work stands, for its page.

    Args:
        functions: what is to be opened, in a word or two ("Open … in editor"), and the function.
    """
    found = {
        label: (inspect.getsourcefile(function), inspect.getsourcelines(function)[1])
        for label, function in functions.items()
    }
    with warnings.catch_warnings():
        # Dagster calls references to code a beta, once for each.
        warnings.simplefilter("ignore", dg.BetaWarning)
        references = [
            dg.LocalFileCodeReference(file_path=str(Path(path).resolve()), line_number=line, label=label)
            for label, (path, line) in found.items()
            if path is not None
        ]
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=list(references))}


def _common(done: DetectionsReference) -> Metadata:
    return {"detection_id": done.detection_id, "reused": done.reused}


def _whereabouts(tags: Mapping[str, str], services: Services) -> Metadata:
    """Where the run's own work is to be seen: its Batch job and that one's log; nothing on a laptop."""
    job, stream = tags.get(JOB_ID_TAG), tags.get(LOG_STREAM_TAG)
    region = _region(services)
    if region is None or not job:
        return {}
    log = {"log": dg.MetadataValue.url(log_url(region, VIDEO_ANALYSIS.name, stream))} if stream else {}
    return {"batch_job": dg.MetadataValue.url(job_url(region, job)), **log}


def _file(name: str, key: str, rows: int, services: Services) -> Metadata:
    """A stored table: a link to it by this name, its rows and its address."""
    url = services.objects.url(key)
    return {**of_materialization(rows=rows, uri=url), name: _link(url, services)}


def _link(url: str, services: Services) -> dg.MetadataValue[Any]:
    """An object's page in AWS's console; where there is none, as on a laptop, its address."""
    region = _region(services)
    if not url.startswith("s3://") or region is None:
        return dg.MetadataValue.path(url)
    # Not by urlsplit: a key may hold `?` and `#`.
    bucket, _, key = url.removeprefix("s3://").partition("/")
    domain = "console.amazonaws.cn" if region.startswith("cn-") else "console.aws.amazon.com"
    place = f"https://{region}.{domain}/s3/object/{bucket}?region={region}&prefix={quote(key)}"
    return dg.MetadataValue.url(place)


def _page(video_id: str, services: Services) -> Metadata:
    """The video in `capstone browse`, where it is played."""
    page = services.settings.video_page(video_id)
    return {} if page is None else {"browse": dg.MetadataValue.url(page)}


def _region(services: Services) -> str | None:
    return None if services.settings.environment == "local" else services.s3.meta.region_name


def _sheet(key: str, services: Services) -> dg.MetadataValue[Any]:
    jpeg = _picture(key, services, side=_SHEET_SIDE, most_bytes=int(MOST_PICTURE_BYTES / _BASE64) - 1000)
    picture = "no picture" if jpeg is None else _shown(jpeg, "contact sheet")
    return dg.MetadataValue.md(picture)


class _Thumbnails:
    """Thumbnails as Markdown for the rows of a table, as long as they fit.

    Args:
        most_bytes: of all of them together; one that stands in two rows counts twice.
    """

    def __init__(self, services: Services, most_bytes: int) -> None:
        self._services = services
        self._made: dict[str, str] = {}
        self.left = most_bytes

    def __call__(self, key: str) -> str:
        if key not in self._made:
            jpeg = _picture(key, self._services, side=_THUMBNAIL_SIDE, most_bytes=_THUMBNAIL_BYTES)
            self._made[key] = "" if jpeg is None else _shown(jpeg, Path(key).stem)
        picture = self._made[key]
        if len(picture) > self.left:
            # The first rows have pictures, and the last ones none: no patchwork.
            self.left = 0
            return ""
        self.left -= len(picture)
        return picture


def _picture(key: str, services: Services, *, side: int, most_bytes: int) -> bytes | None:
    try:
        return shrunk(services.objects.get_bytes(key), side=side, most_bytes=most_bytes)
    except Exception:  # law: what only shows fails no run
        return None


def _shown(jpeg: bytes, caption: str) -> str:
    return f"![{markdown(caption)}](data:image/jpeg;base64,{b64encode(jpeg).decode()})"


def _ms(milliseconds: int) -> timedelta:
    return timedelta(milliseconds=milliseconds)


def _recorded(moment: datetime | None, source: str | None, services: Services) -> Metadata:
    """When the recording began, on the wall and in its zone, and how that is known."""
    shown = {"recorded_at": wall_clock(moment, ZoneInfo(services.settings.timezone))} if moment else {}
    return {**shown, "recorded_at_known_from": time_source(source)}


def _table(
    events: Sequence[Event], picture: Callable[[str], str], recorded_at: datetime | None, services: Services
) -> str:
    """Events by the video's time and, where the recording's start is known, by the wall clock."""
    if not events:
        return "No events."
    zone = ZoneInfo(services.settings.timezone)
    rows = [
        "| | wall clock | start | end | label | track | seen | best | mean | face |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for event in events[:_ROWS_SHOWN]:
        face = "" if event.face_score is None else f"{event.face_score:.2f}"
        before, after = "…" if event.truncated_start else "", "…" if event.truncated_end else ""
        rows.append(
            f"| {picture(event.thumbnail_key)} "
            f"| {wall_clock(recorded_at + _ms(event.start_ms), zone) if recorded_at else ''} "
            f"| {before}{event.start_ms / 1000:.1f} s "
            f"| {event.end_ms / 1000:.1f} s{after} | {event.label} | {event.track_id} | {event.detections}× "
            f"| {event.best_score:.2f} | {event.mean_score:.2f} | {face} |"
        )
    if len(events) > _ROWS_SHOWN:
        rows += ["", f"{len(events) - _ROWS_SHOWN} more are in `capstone.current_events`."]
    if any(event.truncated_start or event.truncated_end for event in events):
        rows += ["", "… was there at the video's very beginning or end."]
    return "\n".join(rows)
