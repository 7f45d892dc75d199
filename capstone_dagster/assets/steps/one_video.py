"""The work on one video, the same where it has a run of its own and where it is one of many."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from capstone_dagster.assets.failing import run_tags
from capstone_dagster.assets.shown import metadata
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.detection import AnalysisOrder, detect
from capstone_dagster.assets.steps.duplicate_passes import Passes
from capstone_dagster.assets.steps.progress import Watch
from capstone_dagster.assets.steps.publication import publish
from capstone_dagster.assets.steps.references import EventsReference, FramesReference, Reference
from capstone_dagster.dagster_private import BACKFILL_ID_TAG
from capstone_dagster.failures.requests import request_run_id
from capstone_dagster.run_tags import (
    CAMERA_TAG,
    EXTERNAL_ID_TAG,
    S3_URI_TAG,
    TRACEPARENT_TAG,
    UPLOAD_TAG,
    VIDEO_TAG,
)
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import SourceMissing
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.videos import latest_upload
from capstone_dagster.traces.context import TraceContext, upload_context
from capstone_dagster.traces.runs import step_context, trace_of


@dataclass(frozen=True, slots=True)
class Made:
    """An asset of one video: what later steps get of it, and what Dagster shows."""

    asset: str
    reference: Reference
    metadata: metadata.Metadata


def known_upload(video_id: str, services: Services) -> VideoUpload:
    """A video's latest upload; raises `SourceMissing` where none is known."""
    upload = services.database.transact(latest_upload, video_id)
    if upload is None:
        raise SourceMissing(
            f"No upload of {video_id!r} is known. Upload the video, or announce it by a message."
        )
    return upload


def analyze(
    context: dg.OpExecutionContext, services: Services, order: AnalysisOrder, log: AnalysisLog, passes: Passes
) -> list[Made]:
    """Frames and detections, made by one pass over the pixels or found finished."""
    watch = Watch(context.run_id, services, log)
    watch.begin()
    done = detect(order, services, log=log, progress=watch, passes=passes)
    log.warn_of(done.summary)
    context.log_event(metadata.of_video(done, services))
    tags = run_tags(context)
    frames = FramesReference(done.detection_id, done.prefix)
    return [
        Made("extracted_frames", frames, metadata.of_frames(done, services, watch.times(), tags)),
        Made("detections", done, metadata.of_detections(done, services, tags)),
    ]


def persist(
    context: dg.OpExecutionContext,
    services: Services,
    derived: EventsReference,
    log: AnalysisLog,
    *,
    began_at: float | None = None,
) -> Made:
    """Published events.

    Args:
        began_at: when the work on the video began, seconds since 1970; None: with the run.
    """
    tags = run_tags(context)
    published, events = publish(
        derived,
        services,
        run_id=context.run_id,
        requested_at=requested_at(context.instance, context.run_id, tags),
        began_at=began_at or _run_began_at(context),
        log=log,
    )
    return Made("events", published, metadata.of_publication(published, events, derived, services, tags))


def step_trace(context: dg.OpExecutionContext, upload: VideoUpload, tags: Mapping[str, str]) -> TraceContext:
    """The span of this attempt at this step, below the step that Dagster's own record makes a span of.

    A run that was started in the UI has no upload among its tags: it gets this one's, so that its logs,
    notices and trace are found by the video too.
    """
    own = upload_context(upload.upload_id, upload.traceparent)
    if not tags:
        return own  # an op called on its own, as in a test, is no step
    trace = trace_of(tags)
    if trace is None:
        trace = own
        added = {
            UPLOAD_TAG: upload.upload_id,
            TRACEPARENT_TAG: str(trace),
            VIDEO_TAG: upload.video_id,
            S3_URI_TAG: upload.url,
            CAMERA_TAG: upload.camera,
        }
        if upload.external_id is not None:
            added[EXTERNAL_ID_TAG] = upload.external_id
        context.instance.add_run_tags(context.run_id, added)
    return step_context(trace, context.run_id, str(context.op_handle), context.retry_number)


def requested_at(instance: dg.DagsterInstance, run_id: str, tags: Mapping[str, str]) -> datetime:
    """When somebody asked for what a run does."""
    # A try that Dagster or the system makes by itself is no new request; an operator's re-execution is.
    record = instance.get_run_record_by_id(request_run_id(run_id, tags))
    if record is None:
        return datetime.now(UTC)
    run = record.dagster_run
    # A backfill makes its runs little by little; a rollback meanwhile was asked for after all of them.
    if BACKFILL_ID_TAG in run.tags and run.parent_run_id is None:
        backfill = instance.get_backfill(run.tags[BACKFILL_ID_TAG])
        if backfill is not None:
            return datetime.fromtimestamp(backfill.backfill_timestamp, UTC)
    return record.create_timestamp.astimezone(UTC)


def _run_began_at(context: dg.OpExecutionContext) -> float:
    record = context.instance.get_run_record_by_id(context.run_id)
    # An op called on its own, as in a test, has no run.
    return time.time() if record is None else record.start_time or record.create_timestamp.timestamp()
