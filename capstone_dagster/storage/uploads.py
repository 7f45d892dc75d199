"""Uploads and the facts about their videos, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class VideoUpload:
    """One upload as intake sees it: identity, location, and what is known about the recording.

    Attributes:
        upload_id, video_id, external_id, camera: see the identities in the documentation.
        etag: S3's, without quotes; with `size_bytes` it identifies the bytes.
        recorded_at: wall-clock time of the video's first frame, timezone-aware; None if unknown.
        recorded_at_source: `message`, `metadata`, `name`, or `container:` and the rule by which its tags were
            read; None if unknown.
        uploaded_at: S3's Last-Modified, timezone-aware.
        traceparent: the W3C trace context of the uploader; None if there is none.
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

    @property
    def log_fields(self) -> dict[str, str | None]:
        """The fields by which log lines of this upload are found."""
        names = ("video_id", "external_id", "bucket", "key", "upload_id")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What is known of a video once it is analysed; lengths in pixels, duration in milliseconds."""

    duration_ms: int
    width: int
    height: int
    fps: float | None
    codec: str
    recorded_at: datetime | None
    recorded_at_source: str | None
