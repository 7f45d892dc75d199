"""Pixels to tracks to events: an independent library without Dagster, AWS or SQL.

`analyze_video` turns a video into Parquet files and pictures; `build_events` derives events from its
detections. Importing this package loads neither PyTorch nor a model.

>>> from pathlib import Path
>>> settings = AnalysisSettings(sample_fps=5)
>>> detector = load_detector(Path("person_face.pt"), settings, device="cpu")
>>> summary = analyze_video(Path("gate.mp4"), Path("results"), detector=detector, settings=settings)
>>> summary.frames_decoded, summary.frames_analyzed
(75, 15)
>>> rules = EventRules()
>>> work = detection_id(
...     etag="9b2c", size_bytes=123_456, model_sha256=model_sha256(Path("person_face.pt")), settings=settings
... )
>>> events = build_events(
...     read_detections(Path("results/detections.parquet")),
...     summary.coverage,
...     analysis_id=analysis_id(video_id="gate-1a2b3c4d", detection_id=work, rules=rules),
...     rules=rules,
... )
>>> write_events(Path("results/events.parquet"), events)
>>> read_events(Path("results/events.parquet")) == events
True
"""

from .detection.detector import Detector, load_detector
from .detections import Detections
from .engine import DetectionSummary, Progress, analyze_video
from .errors import (
    AnalysisError,
    DecoderLost,
    GpuError,
    GpuOutOfMemory,
    InvalidAnalysisSettings,
    ModelUnavailable,
    PyTorchMissing,
    UndecodableVideo,
)
from .events import Coverage, Event, build_events
from .footage.reader import frames, probe
from .footage.video import Frame, VideoInfo
from .identity import DETECTION_VERSION, EVENTS_VERSION, analysis_id, detection_id, event_id, model_sha256
from .pictures import shrunk
from .settings import AnalysisSettings, EventRules
from .tables import (
    DETECTIONS_SCHEMA,
    EVENTS_SCHEMA,
    FRAMES_SCHEMA,
    read_detections,
    read_events,
    read_frames,
    write_events,
)
from .visibility import Visibility, look_at_sheet, still_share
from .zones import ANCHORS, FEET, LineCrossing, Zone, ZoneVisit

__all__ = [
    "ANCHORS",
    "DETECTIONS_SCHEMA",
    "DETECTION_VERSION",
    "EVENTS_SCHEMA",
    "EVENTS_VERSION",
    "FEET",
    "FRAMES_SCHEMA",
    "AnalysisError",
    "AnalysisSettings",
    "Coverage",
    "DecoderLost",
    "DetectionSummary",
    "Detections",
    "Detector",
    "Event",
    "EventRules",
    "Frame",
    "GpuError",
    "GpuOutOfMemory",
    "InvalidAnalysisSettings",
    "LineCrossing",
    "ModelUnavailable",
    "Progress",
    "PyTorchMissing",
    "UndecodableVideo",
    "VideoInfo",
    "Visibility",
    "Zone",
    "ZoneVisit",
    "analysis_id",
    "analyze_video",
    "build_events",
    "detection_id",
    "event_id",
    "frames",
    "load_detector",
    "look_at_sheet",
    "model_sha256",
    "probe",
    "read_detections",
    "read_events",
    "read_frames",
    "shrunk",
    "still_share",
    "write_events",
]
