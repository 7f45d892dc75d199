"""Dagster's facts about a run as fields of a log line, the same for every writer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from capstone_dagster.run_tags import EXTERNAL_ID_TAG, S3_URI_TAG, TRACEPARENT_TAG, UPLOAD_TAG, VIDEO_TAG
from capstone_dagster.traces.context import parse_traceparent, upload_context

if TYPE_CHECKING:
    from dagster import DagsterEvent

Fields = dict[str, Any]

# The names of the things that happen most, as queries use them; any other is Dagster's own, in small letters.
ACTIONS: Mapping[str, str] = {
    "PIPELINE_ENQUEUED": "run.queued",
    "PIPELINE_DEQUEUED": "run.dequeued",
    "PIPELINE_STARTING": "run.starting",
    "PIPELINE_START": "run.started",
    "PIPELINE_SUCCESS": "run.succeeded",
    "PIPELINE_FAILURE": "run.failed",
    "PIPELINE_CANCELING": "run.cancelling",
    "PIPELINE_CANCELED": "run.cancelled",
    "STEP_START": "step.started",
    "STEP_SUCCESS": "step.succeeded",
    "STEP_FAILURE": "step.failed",
    "STEP_SKIPPED": "step.skipped",
    "STEP_UP_FOR_RETRY": "step.retried",
    "STEP_RESTARTED": "step.restarted",
    "ASSET_MATERIALIZATION": "asset.materialized",
    "ASSET_OBSERVATION": "asset.observed",
    "ASSET_CHECK_EVALUATION": "asset.checked",
    "ENGINE_EVENT": "run.engine",
}
# What Dagster writes of a run that ends, or is to be ended.
ENDINGS = frozenset({"PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED"})


def trace_id(upload_id: str | None, traceparent: str | None) -> str | None:
    """The trace that an upload's work belongs to: the uploader's, else one that follows from the upload."""
    context = parse_traceparent(traceparent)
    if context is None and upload_id:
        context = upload_context(upload_id)
    return context.trace_id if context else None


def run_fields(run_id: str | None, tags: Mapping[str, str]) -> Fields:
    """The run's id and its upload, from its tags; unknown fields are absent."""
    upload_id = tags.get(UPLOAD_TAG)
    bucket, _, key = tags.get(S3_URI_TAG, "").removeprefix("s3://").partition("/")
    found = {
        # A run from the UI has no tags of ours, but it has a partition.
        "video_id": tags.get(VIDEO_TAG) or tags.get("dagster/partition"),
        "external_id": tags.get(EXTERNAL_ID_TAG),
        "bucket": bucket,
        "key": key,
        "upload_id": upload_id,
        "run_id": run_id,
        "parent_run_id": tags.get("dagster/parent_run_id"),
        "trace_id": trace_id(upload_id, tags.get(TRACEPARENT_TAG)),
    }
    return {name: value for name, value in found.items() if value}


def event_fields(event: DagsterEvent) -> Fields:
    """What happened: action, step, time it took, asset, and of a failure its class, cause and traceback."""
    data = event.event_specific_data
    kind = event.event_type_value
    found: Fields = {"action": ACTIONS.get(kind, kind.lower()), "step": event.step_key, "event": kind}
    duration_ms = getattr(data, "duration_ms", None)
    if duration_ms is not None:
        found["elapsed_s"] = duration_ms / 1000
    subject = getattr(data, "materialization", None) or getattr(data, "asset_observation", None) or data
    asset_key = getattr(subject, "asset_key", None)
    if asset_key is not None:
        found["asset"] = asset_key.to_user_string()
        # A partition is a video, in runs over many and in what the sensor says of an upload, too.
        found["video_id"] = getattr(subject, "partition", None)
        upload_id = (getattr(subject, "metadata", None) or {}).get("upload_id")
        found["upload_id"] = upload_id.value if upload_id is not None else None
    if kind == "ASSET_CHECK_EVALUATION":
        found |= {"check": getattr(data, "check_name", None), "passed": getattr(data, "passed", None)}
    found |= _failure_fields(data)
    return {name: value for name, value in found.items() if value is not None}


def _failure_fields(data: Any) -> Fields:
    found: Fields = {}
    first = getattr(data, "first_step_failure_event", None)
    failure_data = getattr(data, "user_failure_data", None) or getattr(
        getattr(first, "event_specific_data", None), "user_failure_data", None
    )
    for name in ("failure_class", "cause", "remedy"):
        value = failure_data.metadata.get(name) if failure_data is not None else None
        if value is not None:
            found[name] = str(value.value)
    reason = getattr(data, "failure_reason", None)
    if reason is not None:
        found["reason"] = str(reason.value)
    error = getattr(data, "error", None)
    # The end of a run repeats the error of its first step that failed.
    if error is not None and first is None:
        found["exception"] = str(error.to_string())
    return found
