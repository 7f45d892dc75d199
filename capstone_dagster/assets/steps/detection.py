"""From an upload to stored detections: the same bytes, model and settings are analysed once, ever."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from capstone_dagster.analysis import (
    DETECTION_VERSION,
    AnalysisSettings,
    DetectionSummary,
    Detector,
    Progress,
    analyze_video,
    detection_id,
    load_detector,
    model_sha256,
)
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.duplicate_passes import Passes
from capstone_dagster.assets.steps.measurements import failed_pass_measured, measure_pass
from capstone_dagster.assets.steps.references import DetectionsReference
from capstone_dagster.assets.steps.temporary_files import temporary_folder
from capstone_dagster.catalog.metrics import MODEL_LOAD_TIME
from capstone_dagster.model_files import analysis_settings
from capstone_dagster.services import Services
from capstone_dagster.settings import ConfigurationError, Settings
from capstone_dagster.storage.errors import ObjectNotFound
from capstone_dagster.storage.objects import ObjectStore
from capstone_dagster.storage.sources import download_source
from capstone_dagster.storage.uploads import VideoUpload

MANIFEST = "manifest.json"
_SUMMARY = TypeAdapter(DetectionSummary)


@dataclass(frozen=True, slots=True)
class AnalysisOrder:
    """One upload to analyse, and what its request sets in place of the configured values.

    Attributes:
        nonce: makes the work unlike any before, so that it is done again.
    """

    upload: VideoUpload
    sample_fps: float | None = None
    model: str | None = None
    nonce: str | None = None


def detect(
    order: AnalysisOrder,
    services: Services,
    *,
    log: AnalysisLog,
    progress: Callable[[Progress], None],
    passes: Passes,
) -> DetectionsReference:
    """Analyse an upload, or find that its analysis is finished already.

    The manifest is written last: detections without one do not exist.

    Args:
        log: gets each step.
        progress: called as the pass over the pixels goes on.
        passes: records when a pass begins and ends.

    Raises:
        AnalysisError, StorageError: each with its failure class.
    """
    upload = order.upload
    if (reason := services.settings.unwanted_model(order.model)) is not None:
        raise ConfigurationError(f"The run's configuration names a model that it may not: {reason}.")
    chosen = analysis_settings(services.settings, order.sample_fps)
    model = services.model_path(order.model)
    sha256 = model_sha256(model)
    identity = detection_id(
        etag=upload.etag,
        size_bytes=upload.size_bytes,
        model_sha256=sha256,
        settings=chosen,
        nonce=order.nonce,
    )
    prefix = f"detections/{identity}/"

    def reference(summary: DetectionSummary, *, reused: bool) -> DetectionsReference:
        return DetectionsReference(
            detection_id=identity,
            upload=upload,
            prefix=prefix,
            summary=summary,
            settings=chosen.detection_fields(),
            detection_version=DETECTION_VERSION,
            reused=reused,
            requested_model=order.model,
        )

    passes.use(identity)
    try:
        found = reference(read_summary(services.objects, identity), reused=True)
    except ObjectNotFound:
        pass
    else:
        return _reused(found, log, "exist already: nothing is analysed again", level=logging.INFO)

    with temporary_folder() as folder:
        # The suffix tells some containers' demuxers what to try first.
        video = folder / f"video{Path(upload.key).suffix}"
        started = time.monotonic()
        with services.tracer.span("download", size_bytes=upload.size_bytes):
            download_source(
                services.s3,
                bucket=upload.bucket,
                key=upload.key,
                version_id=upload.version_id,
                etag=upload.etag,
                path=video,
            )
        took = time.monotonic() - started
        log.write(
            f"Fetched {upload.size_bytes:,} bytes in {took:.1f} s.",
            action="video.fetched",
            bytes=upload.size_bytes,
            elapsed_s=round(took, 3),
        )
        out = folder / "detections"
        # Whatever is pinned or not: what is loaded must be what the id was made from.
        expected = _pin(order, services.settings) or sha256
        with passes.turn(log):
            started = time.monotonic()
            with services.tracer.span("load the model", model=model.name):
                detector = _detector(model, chosen, services, expected, log)
            log.model_loaded(detector, time.monotonic() - started)
            with (
                services.tracer.span("decode, detect, track", device=detector.device),
                failed_pass_measured(detector.device, services),
            ):
                done = analyze_video(
                    video,
                    out,
                    detector=detector,
                    settings=chosen,
                    name=upload.key,
                    hardware_decoding=services.settings.hardware_decoding,
                    opened=lambda info: passes.begin(identity, info, log),
                    progress=progress,
                )
            detector.rest()
        measure_pass(done, services)
        log.analyzed(done)
        if services.objects.exists(prefix + MANIFEST):
            # Another run of the same bytes finished first: what it wrote stays as it is.
            found = reference(read_summary(services.objects, identity), reused=True)
            passes.overtaken(identity, log)
            return _reused(found, log, "were finished by another run meanwhile", level=logging.WARNING)
        with services.tracer.span("store the results"):
            for file in sorted(path for path in out.rglob("*") if path.is_file()):
                services.objects.put_file(prefix + file.relative_to(out).as_posix(), file)
    services.objects.put_bytes(prefix + MANIFEST, json.dumps(asdict(done), indent=1).encode())
    passes.finish(identity)
    return reference(done, reused=False)


def read_summary(objects: ObjectStore, detection_id: str) -> DetectionSummary:
    """The summary of finished detections, out of their manifest.

    Raises:
        ObjectNotFound: there are none of this id.
        StorageError: the object store does not answer.
    """
    manifest = objects.get_bytes(f"detections/{detection_id}/{MANIFEST}")
    return _SUMMARY.validate_json(manifest)


def _reused(reference: DetectionsReference, log: AnalysisLog, why: str, *, level: int) -> DetectionsReference:
    log.write(
        f"Detections {reference.detection_id} {why}.",
        action="detections.reused",
        level=level,
        detection_id=reference.detection_id,
    )
    log.on_record(reference.summary, "the detections exist already")
    return reference


def _pin(order: AnalysisOrder, settings: Settings) -> str | None:
    # The pin applies to the configured model, not to one that a request names.
    return settings.model_sha256 if order.model is None else None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The detector of this process, and everything that it was loaded for."""

    key: tuple[object, ...]
    detector: Detector


_loaded: _Loaded | None = None


def _detector(
    model: Path, chosen: AnalysisSettings, services: Services, sha256: str, log: AnalysisLog
) -> Detector:
    """Loading costs seconds: the videos of one process share the detector of the settings at hand."""
    global _loaded
    settings = services.settings
    key = (model, chosen, settings.device, settings.require_gpu, settings.model_cache, sha256)
    if _loaded is None or _loaded.key != key:
        _loaded = None  # the old one's memory is free before the new one needs it
        detector = load_detector(
            model,
            chosen,
            device=settings.device,
            require_gpu=settings.require_gpu,
            expected_sha256=sha256,
            cache=Path(settings.model_cache),
            say=lambda message: log.write(message, action="model.prepared"),
        )
        services.metrics.add(MODEL_LOAD_TIME, detector.load_seconds)
        _loaded = _Loaded(key, detector)
    return _loaded.detector
