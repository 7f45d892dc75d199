"""Where the spans of an op belong: below the step that Dagster's own record makes a span of."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from capstone_dagster.run_tags import (
    CAMERA_TAG,
    EXTERNAL_ID_TAG,
    S3_URI_TAG,
    TRACEPARENT_TAG,
    UPLOAD_TAG,
    VIDEO_TAG,
)
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.traces.context import TraceContext, upload_context
from capstone_dagster.traces.runs import step_context, trace_of


def step_trace(
    context: dg.OpExecutionContext, upload: VideoUpload, run_tags: Mapping[str, str]
) -> TraceContext:
    """The span of this attempt at this step.

    A run that was started in the UI has no upload among its tags: it is given this one's, so that its logs,
    notices and trace are found by the video too.
    """
    own = upload_context(upload.upload_id, upload.traceparent)
    if not run_tags:
        return own  # an op called on its own, as in a test, is no step
    trace = trace_of(run_tags)
    if trace is None:
        trace = own
        tags = {
            UPLOAD_TAG: upload.upload_id,
            TRACEPARENT_TAG: str(trace),
            VIDEO_TAG: upload.video_id,
            S3_URI_TAG: upload.url,
            CAMERA_TAG: upload.camera,
        }
        if upload.external_id is not None:
            tags[EXTERNAL_ID_TAG] = upload.external_id
        context.instance.add_run_tags(context.run_id, tags)
    return step_context(trace, context.run_id, str(context.op_handle), context.retry_number)
