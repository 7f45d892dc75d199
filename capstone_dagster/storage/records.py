"""What goes into the event store and comes out of it, as values: uploads, facts, analyses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class VideoUpload:
    """One upload as intake knows it: identity, whereabouts, and what is known about the recording.

    Attributes:
        upload_id, video_id, external_id, camera: see the identities in the documentation.
        etag: S3's, without quotes; with `size_bytes` it stands for the bytes.
        recorded_at: wall-clock time of the video's first frame, timezone-aware; None if unknown.
        recorded_at_source: `message`, `metadata`, `name` or `container`; None if unknown.
        uploaded_at: S3's Last-Modified, timezone-aware.
        traceparent: the W3C context in which the uploader traces it; None if he does not.
    """

    upload_id: str
    video_id: str
    external_id: str | None
    bucket: str
    key: str
    version_id: str | None
    etag: str
    size_bytes: int
    camera: str
    recorded_at: datetime | None
    recorded_at_source: str | None
    uploaded_at: datetime
    traceparent: str | None = None

    @property
    def url(self) -> str:
        """`s3://bucket/key`, for people."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What is known of the video once it is analysed; lengths in pixels, duration in milliseconds."""

    duration_ms: int
    width: int
    height: int
    fps: float | None
    codec: str
    recorded_at: datetime | None
    recorded_at_source: str | None


@dataclass(frozen=True, slots=True)
class Analysis:
    """One row of `analyses`, but for what the database itself decides.

    Attributes:
        requested_at: when the run that publishes it was asked for; decides which analysis is current.
        gpu_seconds: 0 on a CPU.
        seconds: wall time of the pass over the pixels.
    """

    analysis_id: str
    detection_id: str
    video_id: str
    upload_id: str
    model: str
    model_sha256: str
    settings: Mapping[str, Any]
    detection_version: int
    events_version: int
    run_id: str
    frames_decoded: int
    frames_analyzed: int
    detections: int
    tracks: int
    events: int
    device: str
    backend: str
    gpu_seconds: float
    seconds: float
    objects_prefix: str
    requested_at: datetime


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing did.

    Attributes:
        inserted: rows were written; False when this analysis was published before.
        current: it is what consumers now see; False when a newer upload's analysis is.
        published_at: when it was first published.
        first: it is new, and the first analysis of its upload.
    """

    inserted: bool
    current: bool
    published_at: datetime
    first: bool


@dataclass(frozen=True, slots=True)
class AnalysisFigures:
    """What an analysis is compared by with others of its camera.

    Attributes:
        duration_ms: of the video; None if unknown.
        mean_score: of the detections in its events, 0–1; None without events.
    """

    analysis_id: str
    detections: int
    duration_ms: int | None
    model_sha256: str
    mean_score: float | None


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice in the outbox, with what is known of its video now.

    Attributes:
        kind: `video.received`, `video.analyzed` or `video.failed`.
        payload: what was known when it was written.
        created_at: when what it tells became true.
        refusals: how often SNS has refused it.
        external_id, bucket, key, camera, recorded_at, uploaded_at: None if the video was deleted since.
    """

    notice_id: int
    kind: str
    video_id: str
    upload_id: str
    payload: Mapping[str, Any]
    created_at: datetime
    refusals: int
    external_id: str | None
    bucket: str | None
    key: str | None
    camera: str | None
    recorded_at: datetime | None
    uploaded_at: datetime | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the outbox.

    Attributes:
        waiting: notices that are not sent.
        oldest: when the first of them was written.
        refused: how many of them SNS has refused at least once while it answered.
        refusal: why, of the one that was refused last.
    """

    waiting: int
    oldest: datetime | None
    refused: int
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Pace:
    """How long passes took.

    Attributes:
        passes: how many were looked at.
        seconds: for each second of video.
        gpu_seconds: those of them that a GPU was held for; 0 where all were made on a CPU.
    """

    passes: int
    seconds: float
    gpu_seconds: float
