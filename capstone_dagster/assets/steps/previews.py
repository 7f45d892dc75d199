"""The annotated preview of a video, made on request: by `capstone preview`, or by the job `preview_video`.

Not an asset of every run: it takes about as long as an analysis, and few videos are ever looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow.compute as pc

from capstone_dagster.analysis import read_frames
from capstone_dagster.analysis.preview import render_preview
from capstone_dagster.assets.steps.temporary_files import temporary_folder
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.errors import AnalysisMissing, SourceChanged, SourceMissing
from capstone_dagster.storage.sources import download_source
from capstone_dagster.storage.videos import latest_upload

PREVIEW_FILE = "preview.mp4"


@dataclass(frozen=True, slots=True)
class StoredPreview:
    """A preview in the object store; `made` tells whether it was not there before."""

    key: str
    analysis_id: str
    made: bool


def store_preview(
    video_id: str,
    services: Services,
    *,
    analysis_id: str | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> StoredPreview:
    """Render the preview of a video's analysis beside its events, unless it is there already.

    Args:
        analysis_id: by default the current one.
        progress: called with the fraction done, 0–1.

    Raises:
        AnalysisMissing: there is none, or none is current.
        SourceChanged, SourceMissing: the video that was analysed is not in S3 any more.
        UndecodableVideo, StorageError: as the pass itself.
    """
    rows = services.database.transact(analyses_of, video_id)
    chosen = [
        row
        for row in rows
        if (row["is_current"] if analysis_id is None else row["analysis_id"] == analysis_id)
    ]
    if not chosen:
        wanted = "current analysis" if analysis_id is None else f"analysis {analysis_id}"
        raise AnalysisMissing(
            f"{video_id} has no {wanted}. `capstone analyses {video_id}` lists those it has."
        )
    (analysis,) = chosen
    key = f"analyses/{analysis['analysis_id']}/{PREVIEW_FILE}"
    if services.objects.exists(key):
        return StoredPreview(key, analysis["analysis_id"], made=False)
    upload = services.database.transact(latest_upload, video_id)
    if upload is None:
        raise SourceMissing(f"No upload of {video_id!r} is known: it was deleted meanwhile.")
    if upload.upload_id != analysis["upload_id"]:
        raise SourceChanged(
            f"Analysis {analysis['analysis_id']} is of an upload of {video_id} that has been overwritten "
            "since: its pictures are gone. The newer upload has analyses of its own."
        )
    prefix = f"detections/{analysis['detection_id']}/"
    with temporary_folder() as folder:
        video, out = folder / f"video{Path(upload.key).suffix}", folder / PREVIEW_FILE
        detections, frames = folder / "detections.parquet", folder / "frames.parquet"
        for table in (detections, frames):
            services.objects.get_file(prefix + table.name, table)
        download_source(
            services.s3,
            bucket=upload.bucket,
            key=upload.key,
            version_id=upload.version_id,
            etag=upload.etag,
            path=video,
        )
        last_ms = max(1, pc.max(read_frames(frames)["pts_ms"]).as_py() or 0)
        render_preview(
            video,
            detections,
            frames,
            out,
            name=upload.key,
            recorded_at=_in_zone(upload.recorded_at, services),
            recorded_at_note="(file tag)" if str(upload.recorded_at_source).startswith("container") else "",
            progress=lambda pts_ms: progress(min(1.0, pts_ms / last_ms)),
        )
        services.objects.put_file(key, out)
    return StoredPreview(key, analysis["analysis_id"], made=True)


def _in_zone(moment: datetime | None, services: Services) -> datetime | None:
    return moment.astimezone(ZoneInfo(services.settings.timezone)) if moment else None
