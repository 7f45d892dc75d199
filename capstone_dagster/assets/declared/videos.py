"""The ops and the assets made of them: thin; `assets.steps` has what they do."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from capstone_dagster.analysis import DETECTIONS_SCHEMA, FRAMES_SCHEMA, EventRules, build_events
from capstone_dagster.analysis import analyze_video as analyze_video_file
from capstone_dagster.assets.declared.partitions import backfill_policy, videos
from capstone_dagster.assets.failing import explained, run_tags
from capstone_dagster.assets.shown import columns, metadata
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.detection import AnalysisOrder, detect
from capstone_dagster.assets.steps.duplicate_passes import Passes
from capstone_dagster.assets.steps.one_video import analyze, known_upload, persist, step_trace
from capstone_dagster.assets.steps.publication import derive, publish
from capstone_dagster.assets.steps.references import (
    DetectionsReference,
    EventsReference,
    FramesReference,
    PublishedAnalysis,
)
from capstone_dagster.assets.steps.video_by_video import (
    analyze_in_turn,
    derive_in_turn,
    several_partitions,
)
from capstone_dagster.dagster_private import RESUME_RETRY_TAG, ROOT_RUN_ID_TAG
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.requests import request_run_id
from capstone_dagster.run_tags import FORCE_TAG
from capstone_dagster.services import Services
from capstone_dagster.storage.schema import events as events_table
from capstone_dagster.storage.uploads import VideoUpload

raw_videos = dg.AssetSpec(
    "raw_videos",
    description="""Uploaded videos. One partition is one object in S3, whatever its versions:
`a.mp4` uploaded again is the same partition, analysed again.

Nothing here makes them: the sensor `upload_sensor` hears of an upload from SQS, adds the partition, and
starts one run of `analyze_upload` for it. A video that was deleted leaves its partition behind until
CAPSTONE_PARTITION_RETENTION_DAYS are over.""",
    group_name="videos",
    kinds={"s3", "mp4"},
    owners=metadata.OWNERS,
    tags={"personal-data": "yes"},
    metadata=metadata.code_of({"upload record": VideoUpload}),
    partitions_def=videos,
)


class AnalyzeVideoConfig(dg.Config):
    """What to analyse; `upload` is a `VideoUpload`.

    Without it, as in the UI and in a backfill, the partition's latest upload is analysed.
    """

    upload: dict[str, Any] | None = None
    sample_fps: float | None = None
    model: str | None = None
    nonce: str | None = None
    force: bool = False


@dg.op(
    ins={"raw_videos": dg.In(dg.Nothing)},
    # Not required: a run for several videos materialises them one by one, and leaves nothing for other steps.
    out={
        "extracted_frames": dg.Out(FramesReference, is_required=False),
        "detections": dg.Out(DetectionsReference, is_required=False),
    },
    pool="gpu",
    tags={"batch_gpu/compute": "gpu"},
)
def analyze_video(
    context: dg.OpExecutionContext, config: AnalyzeVideoConfig, services: dg.ResourceParam[Services]
) -> Iterator[dg.Output[Any]]:
    """One pass over the pixels: decode, detect, track; frames and detections are its two outputs.

    In a run for several videos each is finished, down to its published events, before the next begins.
    """
    nonce = _nonce(context, config)
    if several := several_partitions(context):
        selected = context.run.asset_selection
        analyze_in_turn(
            context,
            services,
            several,
            lambda upload: AnalysisOrder(upload, config.sample_fps, config.model, nonce),
            with_events=selected is None or dg.AssetKey("events") in selected,
        )
        return
    with explained(context, services) as failure:
        upload = _upload(context, config, services)
        log = failure.log = AnalysisLog(context.log, context.run_id, upload)
        order = AnalysisOrder(upload, config.sample_fps, config.model, nonce)
        passes = Passes(context.instance, context.run_id, services)
        with services.tracer.within(step_trace(context, upload, failure.tags)):
            made = analyze(context, services, order, log, passes)
    for each in made:
        yield dg.Output(each.reference, each.asset, metadata=each.metadata)


@dg.op(
    ins={"detections": dg.In(dg.Any)},
    out=dg.Out(EventsReference, is_required=False),
    tags={"batch_gpu/compute": "cpu"},
)
def derive_events(
    context: dg.OpExecutionContext,
    detections: DetectionsReference | Mapping[str, DetectionsReference],
    services: dg.ResourceParam[Services],
) -> Iterator[dg.Output[EventsReference]]:
    """Turn detections into events by today's rules; in a run for several videos, publish them as well."""
    if not isinstance(detections, DetectionsReference):
        derive_in_turn(context, services, several_partitions(context), detections)
        return
    upload = detections.upload
    log = AnalysisLog(context.log, context.run_id, upload)
    # The derivation has tried a database that is away for long enough already; a machine is held meanwhile.
    with (
        explained(context, services, log, final={FailureClass.DATABASE_UNAVAILABLE}) as failure,
        services.tracer.within(step_trace(context, upload, failure.tags)),
    ):
        log.on_record(detections.summary, "the detections were stored before")
        derived = derive(detections, services, EventRules(), log)
    yield dg.Output(derived)


@dg.op(tags={"batch_gpu/compute": "cpu"})
def persist_events(
    context: dg.OpExecutionContext, derived: EventsReference, services: dg.ResourceParam[Services]
) -> dg.Output[PublishedAnalysis]:
    """Publish the events in one transaction; what was published before only becomes current."""
    upload = derived.detections.upload
    log = AnalysisLog(context.log, context.run_id, upload)
    # As there: publishing has tried it.
    with (
        explained(context, services, log, final={FailureClass.DATABASE_UNAVAILABLE}) as failure,
        services.tracer.within(step_trace(context, upload, failure.tags)),
    ):
        log.on_record(derived.detections.summary, "the detections were stored before")
        made = persist(context, services, derived, log)
    assert isinstance(made.reference, PublishedAnalysis)
    return dg.Output(made.reference, metadata=made.metadata)


@dg.graph_multi_asset(
    ins={"raw_videos": dg.AssetIn("raw_videos", dagster_type=dg.Nothing)},
    outs={
        "extracted_frames": dg.AssetOut(
            description="""Which frames of a video were decoded, when each is shown, how much moved in
it, and which were looked at: `frames.parquet`, one row a frame.

It comes out of the same pass over the pixels as `detections`: materialising one makes both. Timestamps
are the container's, never a frame's number by a frame rate. CAPSTONE_SAMPLE_FPS says how many a second
are analysed.""",
            kinds={"parquet", "s3"},
            owners=metadata.OWNERS,
            tags={"compute": "gpu"},
            metadata={
                **metadata.code_of({"streaming pass": analyze_video_file}),
                **columns.of_asset(columns.parquet_columns(FRAMES_SCHEMA)),
            },
        ),
        "detections": dg.AssetOut(
            description="""Every single detection of a video with its track, `detections.parquet`, and an
annotated contact sheet.

The same bytes, model and settings are analysed once, ever: materialising again finds what there is, in
seconds and without a GPU's work. A new model or new settings make new ones beside the old; `nonce` in the
configuration (`force` in a message) has the work done again. The checks judge what was stored; a
contradiction keeps `events` from being made of it.""",
            kinds={"ultralytics", "parquet", "s3"},
            owners=metadata.OWNERS,
            tags={"compute": "gpu", "personal-data": "yes"},
            metadata={
                **metadata.code_of({"detections": detect, "streaming pass": analyze_video_file}),
                **columns.of_asset(columns.parquet_columns(DETECTIONS_SCHEMA)),
            },
        ),
    },
    group_name="videos",
    partitions_def=videos,
    backfill_policy=backfill_policy,
)
def video_analysis(raw_videos):  # type: ignore[no-untyped-def]  # a graph's arguments are wires, not values
    """The streaming pass over an upload."""
    extracted_frames, detections = analyze_video(raw_videos)
    return {"extracted_frames": extracted_frames, "detections": detections}


@dg.graph_asset(
    description="""Presences of people and faces, published to PostgreSQL in one transaction:
what consumers read as `capstone.current_events`.

One event is one continuous presence of one tracked person (or of a face without one), not one detection.
It is derived from stored detections: new rules cost no GPU. Publishing again changes nothing; the
analysis asked for last is current. The checks compare the database with what was derived, and the numbers
with what this camera usually has.""",
    group_name="videos",
    kinds={"postgres"},
    owners=metadata.OWNERS,
    tags={"compute": "cpu", "personal-data": "yes"},
    metadata={
        **metadata.code_of({"event rules": build_events, "derivation": derive, "publication": publish}),
        **columns.of_asset(columns.sql_columns(events_table), table=events_table.fullname),
    },
    partitions_def=videos,
    backfill_policy=backfill_policy,
)
def events(detections):  # type: ignore[no-untyped-def]
    """Events of a video, derived from its detections."""
    return persist_events(derive_events(detections))


analyze_upload = dg.define_asset_job(
    "analyze_upload",
    selection=dg.AssetSelection.assets("extracted_frames", "detections", "events"),
    partitions_def=videos,
    description="Analyses one upload and publishes its events. The upload sensor starts it.",
)


def _upload(context: dg.OpExecutionContext, config: AnalyzeVideoConfig, services: Services) -> VideoUpload:
    if config.upload:
        return VideoUpload.from_json(config.upload)
    return known_upload(context.partition_key, services)


def _nonce(context: dg.OpExecutionContext, config: AnalyzeVideoConfig) -> str | None:
    """What makes the work unlike any before; None where finished detections are to be reused."""
    tags = run_tags(context)
    if config.nonce is not None or not (config.force or tags.get(FORCE_TAG) == "true"):
        return config.nonce
    # A run that continues another one does not repeat its finished work.
    resumed = tags.get(RESUME_RETRY_TAG) == "true" and ROOT_RUN_ID_TAG in tags
    return tags[ROOT_RUN_ID_TAG] if resumed else request_run_id(context.run_id, tags)
