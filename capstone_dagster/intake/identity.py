"""Who an upload is: ids made from what S3 says of it, and what its name and metadata tell.

Pure. The ids are a contract with other systems; changing how they are made makes every video a new one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.traces.context import parse_traceparent

if TYPE_CHECKING:
    from capstone_dagster.intake.messages import AnalysisRequest
    from capstone_dagster.settings import Settings
    from capstone_dagster.storage.sources import SourceObject


# Google's camera names files by universal time, all others by the clock on the wall.
_NAMED_IN_UTC = "PXL_"


def upload_id(source: SourceObject) -> str:
    """One upload of one object: 64 hex digits over bucket, key, version, ETag and Last-Modified."""
    modified = source.last_modified.astimezone(UTC).isoformat()
    return _digest(source.bucket, source.key, source.version_id or "", source.etag, modified)


def run_key(upload: str, request: AnalysisRequest, message_id: str) -> str:
    """The key of the one run that a request asks for: 32 hex digits.

    Plain requests for one upload share it. One that asks for another model or sampling has its own, and a
    forced one is as unique as its message, and so is that of an object restored from an archive.
    """
    asked = (request.model or "", "" if request.sample_fps is None else repr(float(request.sample_fps)))
    alone = request.force or request.restored
    if not any(asked) and not alone:
        return upload[:32]
    return _digest(upload, *asked, message_id if alone else "")[:32]


def video_id(bucket: str, key: str) -> str:
    """One object, whatever its versions: a readable slug and 8 hex digits over bucket and key."""
    stem = unicodedata.normalize("NFC", PurePosixPath(key).stem).lower()
    # Letters of every script stay readable; 60 of them keep the id shorter than a line.
    slug = re.sub(r"[^\w]+", "-", stem).strip("-_")[:60].rstrip("-_") or "video"
    return f"{slug}-{hashlib.sha256(f'{bucket}/{key}'.encode()).hexdigest()[:8]}"


def identify(request: AnalysisRequest, source: SourceObject, settings: Settings) -> VideoUpload:
    """Everything known at intake about the upload that a request names.

    The message's own word goes before the object's metadata, and that before what the key's patterns say.
    """
    recorded_at, recorded_at_source = _recorded_at(request, source, settings)
    return VideoUpload(
        upload_id=upload_id(source),
        video_id=video_id(source.bucket, source.key),
        external_id=request.external_id
        or _short(source.metadata.get("video-id"))
        or _search(settings.external_id_pattern, source.key, "external_id"),
        bucket=source.bucket,
        key=source.key,
        version_id=source.version_id,
        etag=source.etag,
        size_bytes=source.size_bytes,
        camera=request.camera
        or _short(source.metadata.get("camera"))
        or _search(settings.camera_pattern, source.key, "camera")
        or "unknown",
        recorded_at=recorded_at,
        recorded_at_source=recorded_at_source,
        uploaded_at=source.last_modified,
        traceparent=_traceparent(request.traceparent) or _traceparent(source.metadata.get("traceparent")),
    )


def _recorded_at(
    request: AnalysisRequest, source: SourceObject, settings: Settings
) -> tuple[datetime | None, str | None]:
    zone = ZoneInfo(settings.timezone)
    if request.recorded_at is not None:
        return _zoned(request.recorded_at, zone), "message"
    stated = source.metadata.get("recorded-at")
    if stated is not None:
        try:
            time = _zoned(datetime.fromisoformat(stated), zone)
        except ValueError:
            pass  # a broken hint is no reason to refuse a video; the name may know better
        else:
            if 1970 <= time.year <= 2100:
                return time, "metadata"
    name = PurePosixPath(source.key).name
    named = _search(settings.recorded_at_pattern, name, "recorded_at")
    if named is not None:
        digits = re.sub(r"\D", "", named)
        in_utc = f"{_NAMED_IN_UTC}{named}" in name.upper()
        try:
            moment = datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC if in_utc else zone)
        except ValueError:
            pass  # digits that are no date, such as month 13
        else:
            return moment, "name:utc" if in_utc else "name"
    return None, None


def _traceparent(text: str | None) -> str | None:
    # A broken one is no reason to refuse a video: it gets a trace of its own.
    return text if parse_traceparent(text) else None


def _zoned(time: datetime, zone: ZoneInfo) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=zone)


def _short(text: str | None) -> str | None:
    """Metadata as far as it is fit to be indexed and listed: 255 characters, as in messages."""
    return text[:255] if text else None


def _search(pattern: str | None, text: str, group: str) -> str | None:
    match = re.search(pattern, text) if pattern else None
    if match is None:
        return None
    return match[group] if group in match.groupdict() else match[1]


def _digest(*parts: str) -> str:
    # NUL cannot occur in any part, so no two lists of parts give one text.
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
