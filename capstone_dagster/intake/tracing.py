"""The first spans of a video's trace: its upload, and its wait in the queue."""

from __future__ import annotations

import time
from collections.abc import Iterable

from capstone_dagster.intake.runs import NewUpload
from capstone_dagster.traces.context import parse_traceparent, upload_context
from capstone_dagster.traces.tracer import Attribute, Span, Tracer


def record_uploads(tracer: Tracer, uploads: Iterable[NewUpload], tick_began: float) -> None:
    """Record what led to the runs that a tick asks for.

    A tick that is evaluated again records the same spans again, under the same ids.

    Args:
        tick_began: seconds since 1970.
    """
    now = time.time()
    for new in uploads:
        upload, message = new.upload, new.message
        context = upload_context(upload.upload_id, upload.traceparent)
        sent = min(message.sent_ms / 1000, now)
        # The message may have come while the tick was already waiting for one.
        received = min(max(tick_began, sent), now)
        attributes: dict[str, Attribute] = {
            "capstone.video_id": upload.video_id,
            "capstone.upload_id": upload.upload_id,
            "capstone.size_bytes": upload.size_bytes,
            "messaging.message.id": message.message_id,
            "url.full": upload.url,
        }
        if upload.external_id is not None:
            attributes["capstone.external_id"] = upload.external_id
        uploaded = min(upload.uploaded_at.timestamp(), sent)
        spans = [
            Span("upload", context, parse_traceparent(upload.traceparent), uploaded, now, attributes),
            Span("wait in the queue", context.child("sqs"), context, sent, received),
            Span("upload_sensor", context.child("intake"), context, received, now),
        ]
        for span in spans:
            tracer.record(span)
