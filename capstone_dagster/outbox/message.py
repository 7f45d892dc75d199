"""A notice as SNS takes it: a JSON object, and the attributes by which a subscription can filter.

docs/consume.md lists the fields; they are only ever added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from capstone_dagster.storage.outbox import Notice
from capstone_dagster.topics import Message

STATES = {
    "video.received": "received",
    "video.analyzed": "done",
    "video.failed": "failed",
    "video.watched": "done",
}
# The fields that depend on the kind, with their value for other kinds.
_DETAILS: Mapping[str, Any] = {
    "failure_class": None,
    "message": None,
    "tried_again": None,
    "analysis_id": None,
    "events": None,
    "current": None,
    "run_id": None,
    "watch": None,
    "matches": None,
}
# SNS takes 256 KiB for ten notices together; everything else in one is shorter than two of S3's keys.
_LONGEST_MESSAGE = 2_000
_LONGEST_GROUP = 128


def message(notice: Notice, page: str | None) -> Message:
    """What SNS is given: of one video, in the order of the notices.

    Args:
        page: the video's page in `capstone browse`, if it has an address.
    """
    group = notice.video_id
    if not group.isascii() or len(group) > _LONGEST_GROUP:  # SNS rejects such a group in a FIFO topic
        group = hashlib.sha256(group.encode()).hexdigest()
    return Message(str(notice.notice_id), group, body(notice, page), attributes(notice))


def body(notice: Notice, page: str | None) -> str:
    """The message: every field is present, null if it is unknown or belongs to another kind."""
    known = {name: notice.payload.get(name, unset) for name, unset in _DETAILS.items()}
    if known["message"] is not None:
        known["message"] = str(known["message"])[:_LONGEST_MESSAGE]
    fields = {
        "notice_id": notice.notice_id,
        "kind": notice.kind,
        "at": _time(notice.created_at),
        "video_id": notice.video_id,
        "external_id": notice.external_id,
        "upload_id": notice.upload_id,
        "bucket": notice.bucket,
        "key": notice.key,
        "camera": notice.camera,
        "state": STATES.get(notice.kind),
        **known,
        "uploaded_at": _time(notice.uploaded_at),
        "recorded_at": _time(notice.recorded_at),
        "page": page,
    }
    return json.dumps(fields, ensure_ascii=False)


def attributes(notice: Notice) -> dict[str, str]:
    """The message attributes; SNS rejects empty ones, so they are left out."""
    known = {
        "kind": notice.kind,
        "video_id": notice.video_id,
        "external_id": notice.external_id,
        "camera": notice.camera,
        "failure_class": notice.payload.get("failure_class"),
        "watch": notice.payload.get("watch"),
        # On every kind, so that one filter passes everything except failures that are retried.
        "tried_again": "true" if notice.payload.get("tried_again") else "false",
    }
    return {name: str(value) for name, value in known.items() if value}


def _time(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
