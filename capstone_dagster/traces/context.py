"""Which trace a video belongs to, in every process the same without asking another.

An uploader may begin the trace, by a W3C `traceparent` in the object's metadata or in the message.
Without one its id is made from the upload's, so that a duplicate message, a retry or another process comes to
the same trace. The runs of an upload carry the context of the span `upload` as the tag
`.dagster/capstone.traceparent`: everything that happens to the video is a child of that span.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

# https://www.w3.org/TR/trace-context/#traceparent-header; ids of zeros only are invalid there.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span that others can be children of.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
        sampled: whether the origin of the trace wants it recorded.
    """

    trace_id: str
    span_id: str
    sampled: bool = True

    def __str__(self) -> str:
        """As a W3C `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    def child(self, *names: str) -> TraceContext:
        """The context of the child span of that name; deterministic, so every process gets the same one."""
        digest = hashlib.sha256("\n".join((self.span_id, *names)).encode()).hexdigest()
        return TraceContext(self.trace_id, digest[:16], self.sampled)


def parse_traceparent(text: str | None) -> TraceContext | None:
    """The context that a `traceparent` names; None where there is none, or one that is not valid."""
    found = _TRACEPARENT.fullmatch((text or "").strip().lower())
    return TraceContext(found[1], found[2], bool(int(found[3], 16) & 1)) if found else None


def upload_context(upload_id: str, traceparent: str | None = None) -> TraceContext:
    """The context of an upload's first span.

    Args:
        upload_id: 64 hex digits; they stand for the trace where the uploader has begun none.
        traceparent: the uploader's own, as it came.
    """
    uploader = parse_traceparent(traceparent)
    if uploader is None:
        return TraceContext(upload_id[:32], upload_id[32:48])
    return uploader.child("upload", upload_id)
