"""The page of a video: played whole, a lane for each track, its files to download, its analyses compared."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from capstone_dagster.analysis import Event, read_events
from capstone_dagster.analysis.comparison import compare_events
from capstone_dagster.analysis.formats import write_coco, write_mot
from capstone_dagster.storage.event_files import WRITERS
from capstone_dagster.storage.events import EventFilter, stream_events
from capstone_dagster.web import reading
from capstone_dagster.web.reading import Row
from capstone_dagster.web.site import Site, site_of

# Longer windows are asked for in several requests.
_WINDOW_AT_MOST_MS = 120_000
FORMS = {"spreadsheet": "events.csv", "parquet": "events.parquet", "coco": "coco.json", "mot": "mot.txt"}
"""What can be downloaded, and how the files' names end."""


def video_page(request: Request) -> Response:
    """`/videos/…`: the whole video over the lanes of its tracks."""
    site = site_of(request)
    video_id = request.path_params["video_id"]
    with site.database.transaction() as connection:
        status = reading.status_of_video(connection, video_id)
        if status is None:
            raise HTTPException(404, "There is no such video: it was never uploaded, or it was deleted.")
        analyses = reading.analyses_of_video(connection, video_id)
        rows = reading.events_of_video(connection, video_id)
    current = analyses[0] if analyses and analyses[0]["is_current"] else None
    ends_ms = max([row["end_ms"] for row in rows], default=0) + 1
    duration_ms = max((current or {}).get("duration_ms") or 0, ends_ms)
    return site.page(
        request,
        "video.html.j2",
        upload=status,
        current=current,
        analyses=analyses,
        lanes=_lanes(rows),
        duration_ms=duration_ms,
        player={"video": current, "start_ms": 0, "end_ms": None, "track": None},
        forms=FORMS,
    )


def media(request: Request) -> Response:
    """`/videos/…/media`: a redirect to the upload that the current analysis is of."""
    site = site_of(request)
    row = _current(site, request)
    if row["raw_removed_at"] is not None:
        raise HTTPException(404, "The video was deleted by retention; its events are kept.")
    return RedirectResponse(site.media.video_address(row["bucket"], row["key"], row["version_id"]))


def boxes(request: Request) -> Response:
    """`/videos/…/boxes?from=…&to=…`: the detections of a time window in milliseconds."""
    site = site_of(request)
    try:
        start_ms, end_ms = (int(request.query_params[name]) for name in ("from", "to"))
    except (KeyError, ValueError):
        raise HTTPException(400, "Expected from and to in milliseconds.") from None
    row = _current(site, request)
    return JSONResponse(site.media.boxes(row, start_ms, min(end_ms, start_ms + _WINDOW_AT_MOST_MS)))


def download(request: Request) -> Response:
    """`/videos/…/download/…`: the files of `capstone export`, of this video."""
    site = site_of(request)
    form = request.path_params["form"]
    if form not in FORMS:
        raise HTTPException(404, "There is no download of this form.")
    row = _current(site, request)
    folder = Path(tempfile.mkdtemp(prefix="capstone-download-"))
    try:
        path = folder / "download"
        if form in WRITERS:
            with site.database.transaction() as connection:
                WRITERS[form](path, *stream_events(connection, EventFilter(videos=(row["video_id"],))))
        else:
            _write_detections(site, row, form, path)
    except BaseException:
        shutil.rmtree(folder)
        raise
    name = f"{row['video_id']}.{FORMS[form]}"
    return FileResponse(path, filename=name, background=BackgroundTask(shutil.rmtree, folder))


def comparison_page(request: Request) -> Response:
    """`/videos/…/compare?before=…&after=…`: what changed from one analysis to another."""
    site = site_of(request)
    video_id = request.path_params["video_id"]
    with site.database.transaction() as connection:
        found = {row["analysis_id"]: row for row in reading.analyses_of_video(connection, video_id)}
    chosen = [found.get(request.query_params.get(name, "")) for name in ("before", "after")]
    before, after = chosen
    if before is None or after is None:
        raise HTTPException(404, "This video has no such analysis.")
    comparison = compare_events(_stored_events(site, before), _stored_events(site, after))
    changes: dict[str, list[tuple[Event | None, Event | None]]] = {
        "Only in the first": [(event, None) for event in comparison.vanished],
        "Only in the second": [(None, event) for event in comparison.appeared],
        "In both, at another time or place": [(pair.before, pair.after) for pair in comparison.moved],
    }
    return site.page(
        request,
        "compare.html.j2",
        video_id=video_id,
        before=before,
        after=after,
        changes=changes,
        same=len(comparison.matched) - len(comparison.moved),
        picture=site.media.derived_address,
    )


def _current(site: Site, request: Request) -> Row:
    with site.database.transaction() as connection:
        row = reading.current_analysis(connection, request.path_params["video_id"])
    if row is None:
        raise HTTPException(404, "There is no analysis of such a video.")
    return row


def _lanes(rows: list[Row]) -> list[dict[str, Any]]:
    """The events of each track, tracks in order of their first appearance."""
    lanes: dict[int, list[Row]] = {}
    for row in rows:
        lanes.setdefault(row["track_id"], []).append(row)
    return [
        {"track": track, "label": events[0]["label"], "events": events} for track, events in lanes.items()
    ]


def _write_detections(site: Site, row: Row, form: str, path: Path) -> None:
    prefix = f"detections/{row['detection_id']}/"
    detections, frames = path.with_name("detections.parquet"), path.with_name("frames.parquet")
    site.objects.get_file(prefix + detections.name, detections)
    with path.open("w", encoding="utf-8") as target:
        if form == "mot":
            # The format has no labels.
            write_mot(detections, target, labels=["person"])
        else:
            site.objects.get_file(prefix + frames.name, frames)
            write_coco(
                detections, frames, target, width=row["width"], height=row["height"], video=row["video_id"]
            )


def _stored_events(site: Site, analysis: Row) -> list[Event]:
    with tempfile.TemporaryDirectory(prefix="capstone-compare-") as folder:
        path = Path(folder) / "events.parquet"
        site.objects.get_file(f"analyses/{analysis['analysis_id']}/{path.name}", path)
        return read_events(path)
