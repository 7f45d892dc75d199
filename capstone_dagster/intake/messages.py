"""Queue messages in, requests for analysis out: pure, total, and never in doubt about why.

Understood are S3 event notifications, EventBridge's S3 events, either of them wrapped by SNS, and the back
end's own request. Whatever else arrives is malformed, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import unquote_plus

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)


@dataclass(frozen=True, slots=True)
class AnalysisRequest:
    """One object that a message asks to analyse.

    Attributes:
        version_id: the version that the message names; None means the latest.
        external_id, recorded_at, camera: what the back end says of the video, None where it says nothing;
            `recorded_at` may lack a zone.
        priority: Dagster's run priority, higher first.
        sample_fps, model: asked for in place of the configured ones.
        force: analyse even what was analysed before.
        restored: the object came back from an archive, so that a run that failed for this is done again.
        may_precede: a back end asked, perhaps before the upload.
        traceparent: W3C trace context of the upload.
    """

    bucket: str
    key: str
    version_id: str | None = None
    external_id: str | None = None
    recorded_at: datetime | None = None
    camera: str | None = None
    priority: int = 0
    sample_fps: float | None = None
    model: str | None = None
    force: bool = False
    traceparent: str | None = None
    restored: bool = False
    may_precede: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message, or a part of one, that cannot be understood: why, and its text."""

    reason: str
    body: str


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """What one message asks for. All three empty is impossible: a test event counts as ignored.

    Attributes:
        ignored: one reason for each part that asks for nothing on purpose.
    """

    requests: tuple[AnalysisRequest, ...] = ()
    ignored: tuple[str, ...] = ()
    malformed: tuple[Malformed, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Which keys are videos: those under a prefix that end in one of the suffixes, whatever their case.

    Attributes:
        buckets: those that may be named; none means any.
    """

    prefix: str = ""
    suffixes: tuple[str, ...] = field(default=())
    buckets: frozenset[str] = frozenset()

    def check_bucket(self, bucket: str) -> None:
        """Raises `ValueError` for a bucket that is not ours."""
        if self.buckets and bucket not in self.buckets:
            raise ValueError(f"bucket {bucket!r} is none of {', '.join(sorted(self.buckets))}")

    def reason_to_ignore(self, key: str) -> str | None:
        """Why a key is none of ours, or None if it is."""
        if not key.startswith(self.prefix):
            return f"key {key!r} is outside {self.prefix!r}"
        if self.suffixes and not key.lower().endswith(tuple(suffix.lower() for suffix in self.suffixes)):
            return f"key {key!r} does not end in one of {', '.join(self.suffixes)}"
        return None


_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_RESTORED = "ObjectRestore:Completed"
_CLOUDTRAIL = "AWS API Call via CloudTrail"
_UPLOADING_CALLS = ("PutObject", "CopyObject", "CompleteMultipartUpload", "PostObject")

# Python refuses to read integers of more than 4,300 digits by a plain ValueError.
_UNREADABLE = (ValueError, RecursionError)


def parse_message(body: str, keys: KeyFilter) -> ParsedMessage:
    """Understand one message body. Never raises: what cannot be understood is returned as malformed."""
    try:
        content = json.loads(body)
    except _UNREADABLE as error:
        return ParsedMessage(malformed=(Malformed(f"not JSON: {error}", body),))
    return _parse(content, body, keys, wrapped=False)


def _parse(content: Any, body: str, keys: KeyFilter, *, wrapped: bool) -> ParsedMessage:
    if not isinstance(content, dict):
        return _malformed(f"expected a JSON object, found {_kind(content)}", body)
    if content.get("Type") == "Notification" and isinstance(content.get("Message"), str) and not wrapped:
        try:
            inner = json.loads(content["Message"])
        except _UNREADABLE as error:
            return _malformed(f"an SNS notification whose Message is not JSON: {error}", body)
        return _parse(inner, content["Message"], keys, wrapped=True)
    if content.get("Event") == "s3:TestEvent":
        return ParsedMessage(ignored=("S3's test event",))
    if "Records" in content:
        return _parse_records(content["Records"], body, keys)
    if content.get("source") == "aws.s3":
        return _parse_eventbridge(content, body, keys)
    if "bucket" in content or "key" in content:
        return _parse_request(content, body, keys)
    known = "S3's Records, EventBridge's aws.s3 event, or a request with bucket and key"
    return _malformed(f"expected {known}; found an object with {_names(content)}", body)


def _parse_records(records: Any, body: str, keys: KeyFilter) -> ParsedMessage:
    if not isinstance(records, list) or not records:
        return _malformed(f"expected a list of records under Records, found {_kind(records)}", body)
    requests: list[AnalysisRequest] = []
    ignored: list[str] = []
    malformed: list[Malformed] = []
    for record in records:
        try:
            name = record["eventName"]
            bucket, item = record["s3"]["bucket"]["name"], record["s3"]["object"]
            key, version_id = item["key"], item.get("versionId")
            if record["eventSource"] != "aws:s3":
                raise ValueError(f"eventSource is {record['eventSource']!r}, expected 'aws:s3'")
            # S3 encodes keys as HTML forms do: a space arrives as a plus.
            key = unquote_plus(_text(key, "key"), errors="strict")
            kind = str(name).removeprefix("s3:")
            request = _object_request(bucket, key, version_id, keys, restored=kind == _RESTORED)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # ASCII, because half a surrogate pair is JSON but no text that a queue takes.
            part = json.dumps({"Records": [record]})
            malformed.append(Malformed(f"not a record of S3: {_reason(error)}", part))
            continue
        if not kind.startswith("ObjectCreated:") and kind != _RESTORED:
            ignored.append(f"event {name!r} is not an upload")
        elif reason := keys.reason_to_ignore(request.key):
            ignored.append(reason)
        else:
            requests.append(request)
    return ParsedMessage(tuple(requests), tuple(ignored), tuple(malformed))


def _parse_eventbridge(content: Mapping[str, Any], body: str, keys: KeyFilter) -> ParsedMessage:
    kind = content.get("detail-type")
    if kind == _CLOUDTRAIL:
        return _parse_cloudtrail(content, body, keys)
    if kind not in ("Object Created", "Object Restore Completed"):
        if isinstance(kind, str) and kind.startswith("Object "):
            return ParsedMessage(ignored=(f"event {kind!r} is not an upload",))
        return _malformed(f"not an event about an S3 object: detail-type is {kind!r}", body)
    try:
        item = content["detail"]["object"]
        # EventBridge gives keys as they are.
        request = _object_request(
            content["detail"]["bucket"]["name"],
            _text(item["key"], "key"),
            item.get("version-id"),
            keys,
            restored=kind != "Object Created",
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return _malformed(f"not an S3 event of EventBridge: {_reason(error)}", body)
    if reason := keys.reason_to_ignore(request.key):
        return ParsedMessage(ignored=(reason,))
    return ParsedMessage(requests=(request,))


def _parse_cloudtrail(content: Mapping[str, Any], body: str, keys: KeyFilter) -> ParsedMessage:
    """A rule on API calls, as CloudTrail records them, in place of S3's own events."""
    try:
        detail = content["detail"]
        call, failed = detail["eventName"], detail.get("errorCode")
        if call not in _UPLOADING_CALLS or failed:
            what = f"call {call!r}" + (f" that failed ({failed})" if failed else "")
            return ParsedMessage(ignored=(f"{what} is not an upload",))
        asked, answered = detail["requestParameters"], detail.get("responseElements") or {}
        request = _object_request(
            asked["bucketName"], _text(asked["key"], "key"), answered.get("x-amz-version-id"), keys
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return _malformed(f"not an upload that CloudTrail recorded: {_reason(error)}", body)
    if reason := keys.reason_to_ignore(request.key):
        return ParsedMessage(ignored=(reason,))
    return ParsedMessage(requests=(request,))


def _no_nul(value: Any) -> Any:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("expected a text without NUL, which PostgreSQL cannot keep")
    return value


def _not_a_flag(value: Any) -> Any:
    # Python takes true for 1; an id or a number that was sent as a flag is a mistake.
    if isinstance(value, bool):
        raise ValueError("expected a number or a text, found true or false")
    return value


# What is indexed or shown in lists: PostgreSQL's indexes take some 2,700 bytes, people far less.
_Short = Annotated[str, Field(min_length=1, max_length=255)]


def _plausible(time: datetime | None) -> datetime | None:
    # PostgreSQL and Python disagree at the ends of the calendar; no recording is from there.
    if time is not None and not 1970 <= time.year <= 2100:
        raise ValueError("expected a time between 1970 and 2100")
    return time


# The back end's own id may be a number; here it is a text.
_Id = Annotated[
    Annotated[int, Field(ge=-(10**18), le=10**18)] | _Short | None,
    BeforeValidator(_not_a_flag),
    AfterValidator(lambda value: None if value is None else str(value)),
]


class _BackEndRequest(BaseModel):
    """The fields of an :class:`AnalysisRequest` that a back end may send, and what each may hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    _keepable = field_validator("*", mode="before")(_no_nul)

    bucket: str = Field(min_length=1)
    key: str = Field(min_length=1)
    external_id: _Id = Field(default=None, alias="video_id")
    recorded_at: Annotated[datetime | None, Field(strict=False), AfterValidator(_plausible)] = None
    camera: _Short | None = None
    # Dagster sorts by it as a number; the bounds keep it one that people can read.
    priority: Annotated[int, BeforeValidator(_not_a_flag)] = Field(default=0, ge=-1000, le=1000)
    sample_fps: Annotated[float | None, BeforeValidator(_not_a_flag)] = Field(default=None, ge=0, le=1000)
    model: _Short | None = None
    force: bool = False
    traceparent: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
    )


def _parse_request(content: Mapping[str, Any], body: str, keys: KeyFilter) -> ParsedMessage:
    try:
        asked = _BackEndRequest.model_validate(content)
        # A number for a date would be taken as seconds since 1970, which nobody means.
        if isinstance(content.get("recorded_at"), (int, float)):
            raise ValueError("recorded_at: expected a date and time as in 2026-01-22T14:23:15+09:00")
        _object_request(asked.bucket, asked.key, None, keys)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        )
        return _malformed(f"not a request for analysis: {problems}", body)
    except ValueError as error:
        return _malformed(f"not a request for analysis: {error}", body)
    if reason := keys.reason_to_ignore(asked.key):
        return ParsedMessage(ignored=(reason,))
    return ParsedMessage(requests=(AnalysisRequest(**asked.model_dump(), may_precede=True),))


def _object_request(
    bucket: Any, key: str, version_id: Any, keys: KeyFilter, *, restored: bool = False
) -> AnalysisRequest:
    # boto3 would take an access point's ARN for another host's name.
    if not isinstance(bucket, str) or not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise ValueError(f"bucket name: expected 3 to 63 of a-z, 0-9, dot and hyphen, found {_shown(bucket)}")
    keys.check_bucket(bucket)
    # PostgreSQL has no NUL in texts, and S3 takes at most 1,024 bytes for a key.
    if "\0" in key or not 1 <= len(key.encode()) <= 1024:
        raise ValueError("key: expected 1 to 1,024 bytes without NUL")
    if version_id is not None:
        version_id = _text(version_id, "version id")
        if len(version_id) > 1024 or "\0" in version_id:
            raise ValueError("version id: expected at most 1,024 characters without NUL")
    return AnalysisRequest(bucket=bucket, key=key, version_id=version_id or None, restored=restored)


def _shown(value: Any) -> str:
    return repr(value[:100]) if isinstance(value, str) else _kind(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what}: expected a text, found {_kind(value)}")
    value.encode()  # a lone surrogate is no text; UnicodeEncodeError is a ValueError
    return value


def _malformed(reason: str, body: str) -> ParsedMessage:
    return ParsedMessage(malformed=(Malformed(reason, body),))


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "a flag"}
    return "nothing" if value is None else names.get(type(value), "a number")


def _names(content: Mapping[str, Any]) -> str:
    shown = ", ".join(sorted(content)[:8])
    return f"the fields {shown}" if shown else "no fields"
