"""Pixels to tracks to events: a library on its own, without Dagster, AWS or SQL.

`load_detector` and `analyze_video` turn a video into Parquet files and pictures; `build_events` turns its
detections into events. Progress, counts and timings come back as values. Importing this package loads
neither torch nor a model.
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

__all__ = [
    "DETECTIONS_SCHEMA",
    "DETECTION_VERSION",
    "EVENTS_SCHEMA",
    "EVENTS_VERSION",
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
    "ModelUnavailable",
    "Progress",
    "PyTorchMissing",
    "UndecodableVideo",
    "VideoInfo",
    "Visibility",
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
