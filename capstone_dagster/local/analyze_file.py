"""The analysis library on one local file: what `capstone analyze` does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from capstone_dagster.analysis import (
    EventRules,
    Progress,
    analysis_id,
    analyze_video,
    build_events,
    detection_id,
    load_detector,
    read_detections,
    write_events,
)
from capstone_dagster.clients import aws_client
from capstone_dagster.models import analysis_settings, locate_model
from capstone_dagster.settings import Settings
from capstone_dagster.storage.errors import SourceMissing
from capstone_dagster.terminal import Report


@dataclass(frozen=True, slots=True)
class FileSummary:
    """What was found and what it cost, as scripts read it: durations in seconds, memory in MiB."""

    frames_decoded: int
    frames_analyzed: int
    detections: int
    tracks: int
    events: int
    duration_s: float
    seconds: float
    fps: float
    device: str
    backend: str
    peak_rss_mb: float


def analyze_file(video: Path, out: Path, settings: Settings, report: Report) -> FileSummary:
    """Analyse a file into a directory.

    Raises:
        AnalysisError, StorageError, ConfigurationError: each with its sentence.
    """
    if not video.is_file():
        raise SourceMissing(f"Expected a video file, but there is none at {video}.")
    chosen = analysis_settings(settings)
    rules = EventRules()
    cache = Path(settings.model_cache).expanduser()
    model = locate_model(settings.model, cache=cache, s3=lambda: aws_client("s3"))
    detector = load_detector(model, chosen, device=settings.device, expected_sha256=settings.model_sha256)

    def follow(progress: Progress) -> None:
        told = f"Analysing {video.name}: {progress.frames_analyzed} frames, {progress.detections} detections"
        report(told, progress.fraction)

    report(f"Analysing {video.name}")
    done = analyze_video(video, out, detector=detector, settings=chosen, progress=follow)
    with video.open("rb") as file:
        etag = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    detections = detection_id(
        etag=etag, size_bytes=video.stat().st_size, model_sha256=detector.sha256, settings=chosen
    )
    events = build_events(
        read_detections(out / "detections.parquet"),
        analysis_id=analysis_id(video_id=video.stem, detection_id=detections, rules=rules),
        rules=rules,
        width=done.width,
        height=done.height,
        first_pts_ms=done.first_pts_ms,
        last_pts_ms=done.last_pts_ms,
        sample_interval_ms=done.sample_interval_ms,
    )
    write_events(out / "events.parquet", events)
    return FileSummary(
        frames_decoded=done.frames_decoded,
        frames_analyzed=done.frames_analyzed,
        detections=done.detections,
        tracks=done.tracks,
        events=len(events),
        duration_s=done.duration_ms / 1000,
        seconds=round(done.seconds, 3),
        fps=round(done.frames_decoded / max(done.seconds, 1e-9), 2),
        device=done.device,
        backend=done.backend,
        peak_rss_mb=round(done.peak_rss_mb, 1),
    )
