"""The analysis library on local files: what `capstone analyze` does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from capstone_dagster.analysis import (
    Detector,
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
from capstone_dagster.analysis.engine import peak_rss_mb
from capstone_dagster.clients import aws_client
from capstone_dagster.model_files import analysis_settings, locate_model
from capstone_dagster.settings import Settings
from capstone_dagster.storage.errors import SourceMissing
from capstone_dagster.terminal import Report


@dataclass(frozen=True, slots=True)
class FileSummary:
    """What was found and what it cost, as scripts read it: durations in seconds, memory in MiB."""

    video: str
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
    truncated: bool
    decode_errors: int
    corrupt_frames: int
    size_changes: int
    track: str | None


class FileAnalyzer:
    """Analyses files one after the other with one detector, loaded once."""

    def __init__(self, settings: Settings, report: Report) -> None:
        """Loads the model.

        Raises:
            AnalysisError, StorageError, ConfigurationError: each with its sentence.
        """
        self._settings = analysis_settings(settings)
        self._hardware_decoding = settings.hardware_decoding
        cache = Path(settings.model_cache).expanduser()
        model = locate_model(settings.model, cache=cache, s3=lambda: aws_client("s3"))
        self.detector: Detector = load_detector(
            model,
            self._settings,
            device=settings.device,
            require_gpu=settings.require_gpu,
            expected_sha256=settings.model_sha256,
            cache=cache,
            say=report,
        )

    def analyze(self, video: Path, out: Path, report: Report) -> FileSummary:
        """Analyse a file into a directory.

        Raises:
            AnalysisError, StorageError: each with its sentence.
        """
        check_source(video)

        def follow(progress: Progress) -> None:
            counts = f"{progress.frames_analyzed} frames, {progress.detections} detections"
            report(f"Analysing {video.name}: {counts}", progress.fraction)

        report(f"Analysing {video.name}")
        done = analyze_video(
            video,
            out,
            detector=self.detector,
            settings=self._settings,
            hardware_decoding=self._hardware_decoding,
            progress=follow,
        )
        with video.open("rb") as file:
            etag = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        detections = detection_id(
            etag=etag,
            size_bytes=video.stat().st_size,
            model_sha256=self.detector.sha256,
            settings=self._settings,
        )
        rules = EventRules()
        events = build_events(
            read_detections(out / "detections.parquet"),
            done.coverage,
            analysis_id=analysis_id(video_id=video.stem, detection_id=detections, rules=rules),
            rules=rules,
        )
        write_events(out / "events.parquet", events)
        return FileSummary(
            video=str(video),
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
            peak_rss_mb=round(peak_rss_mb(), 1),  # with the events
            truncated=done.truncated,
            decode_errors=done.decode_errors,
            corrupt_frames=done.corrupt_frames,
            size_changes=done.size_changes,
            track=done.track,
        )


def check_source(video: Path) -> None:
    """Raises `SourceMissing` where there is no such file."""
    if not video.is_file():
        raise SourceMissing(f"Expected a video file, but there is none at {video}.")


def output_folders(videos: list[Path], out: Path) -> list[Path]:
    """Where each file's results go: `out` itself for a single one, else a folder in it for each.

    Of files with one name the second gets a number behind it.
    """
    if len(videos) == 1:
        return [out]
    folders: list[Path] = []
    taken: set[str] = set()  # folded: some file systems take upper and lower case for the same
    for video in videos:
        names = (video.stem if number == 1 else f"{video.stem}-{number}" for number in count(1))
        name = next(name for name in names if name.casefold() not in taken)
        taken.add(name.casefold())
        folders.append(out / name)
    return folders
