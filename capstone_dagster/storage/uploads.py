"""Uploads and the facts about their videos, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from capstone_dagster.settings import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
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
    external_id: str | None = None
    bucket: str
    key: str
    version_id: str | None = None
    etag: str
    size_bytes: int
    camera: str
    recorded_at: datetime | None = None
    recorded_at_source: str | None = None
    uploaded_at: datetime
    traceparent: str | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> VideoUpload:
        """From a run's configuration, as :meth:`to_json` makes it.

        Raises:
            ConfigurationError: a field is missing or wrong.
        """
        try:
            return _UPLOAD.validate_python(fields)
        except ValidationError as error:
            problems = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
            raise ConfigurationError(f"The run's configuration holds no upload. {problems}.") from None

    def to_json(self) -> dict[str, Any]:
        """What a run's configuration can hold: times as ISO 8601, and no field that is None."""
        fields: dict[str, Any] = _UPLOAD.dump_python(self, mode="json", exclude_none=True)
        return fields

    @property
    def url(self) -> str:
        """`s3://bucket/key`, for people."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def log_fields(self) -> dict[str, str | None]:
        """The fields by which log lines of this upload are found."""
        names = ("video_id", "external_id", "bucket", "key", "upload_id")
        return {name: getattr(self, name) for name in names}


_UPLOAD = TypeAdapter(VideoUpload)


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
