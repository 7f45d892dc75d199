"""What a tick does with each message, as log lines: they go to `/capstone/intake`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import dagster as dg

from capstone_dagster.failures.classes import classify
from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.intake.queue import ReceivedMessage
from capstone_dagster.logs.run_fields import trace_id
from capstone_dagster.storage.uploads import VideoUpload

log = logging.getLogger("capstone.intake")


def log_line(level: int, message: str, *, action: str, **fields: Any) -> None:
    """One line."""
    log.log(level, message, extra={"action": action, **fields})


def warn(
    context: dg.SensorEvaluationContext,
    message: str,
    *,
    action: str,
    level: int = logging.WARNING,
    error: Exception | None = None,
    **fields: Any,
) -> None:
    """Log one line that also appears in the tick's log in the UI."""
    context.log.log(level, message)
    if error is not None:
        fields["failure_class"] = classify(error).value
    log_line(level, message, action=action, **fields)


def of_message(message: ReceivedMessage) -> dict[str, Any]:
    """The fields that say which delivery of which message a line is about."""
    return {
        "message_id": message.message_id,
        "request_id": message.request_id,
        "receive_count": message.receive_count,
    }


def of_request(request: AnalysisRequest) -> dict[str, Any]:
    """The fields that say which object a message names."""
    return {"bucket": request.bucket, "key": request.key, "external_id": request.external_id}


def of_upload(upload: VideoUpload, request: AnalysisRequest) -> Mapping[str, Any]:
    """The fields that say which upload a line is about."""
    return {
        **upload.log_fields,
        "trace_id": trace_id(upload.upload_id, upload.traceparent or request.traceparent),
    }
