"""The ops and the assets made of them: thin; what they do stands in `analyze` and `publish`."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from capstone_dagster.analysis import EventRules, Progress
from capstone_dagster.assets.analyze import AnalysisOrder, detect
from capstone_dagster.assets.failing import explained, run_tags
from capstone_dagster.assets.publish import derive, publish
from capstone_dagster.assets.references import (
    DetectionsReference,
    EventsReference,
    FramesReference,
    PublishedAnalysis,
)
from capstone_dagster.observability.failures import FailureClass
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import SourceMissing, StorageError
from capstone_dagster.storage.records import VideoUpload

# Transient faults get two more tries within the run, some 5 and 10 s apart: long enough for a failover's
# first seconds, short enough not to hold a GPU for a database.
RETRY = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

videos = dg.DynamicPartitionsDefinition(name="videos")

raw_videos = dg.AssetSpec(
    "raw_videos",
    description="Uploaded videos, as the intake sensor saw them. One partition is one object in S3.",
    group_name="videos",
    kinds={"s3"},
    partitions_def=videos,
)


class UploadConfig(dg.Config):
    """An upload in a run's configuration; times as ISO 8601."""

    upload_id: str
    video_id: str
    external_id: str | None = None
    bucket: str
    key: str
    version_id: str | None = None
    etag: str
    size_bytes: int
    camera: str
    recorded_at: str | None = None
    recorded_at_source: str | None = None
    uploaded_at: str

    def to_upload(self) -> VideoUpload:
        """The value that the rest of the program works with."""
        fields: dict[str, Any] = dict(self)
        fields["uploaded_at"] = datetime.fromisoformat(self.uploaded_at)
        fields["recorded_at"] = datetime.fromisoformat(self.recorded_at) if self.recorded_at else None
        return VideoUpload(**fields)


class AnalyzeVideoConfig(dg.Config):
    """What to analyse. Left empty (in the UI, in a backfill), the partition's latest upload is."""

    upload: UploadConfig | None = None
    sample_fps: float | None = None
    model: str | None = None
    nonce: str | None = None


@dg.op(
    ins={"raw_videos": dg.In(dg.Nothing)},
    out={"extracted_frames": dg.Out(FramesReference), "detections": dg.Out(DetectionsReference)},
    pool="gpu",
    retry_policy=RETRY,
    tags={"batch_gpu/compute": "gpu"},
)
def analyze_video(
    context: dg.OpExecutionContext, config: AnalyzeVideoConfig, services: dg.ResourceParam[Services]
) -> Iterator[dg.Output[Any]]:
    """One pass over the pixels: decode, detect, track; frames and detections are its two outputs."""
    watch = _Watch(context, services)
    with explained(context, services) as failure:
        upload = config.upload.to_upload() if config.upload else _latest_upload(context, services)
        failure.upload_id = watch.upload_id = upload.upload_id
        watch.report(0.0)
        order = AnalysisOrder(upload, config.sample_fps, config.model, config.nonce)
        done = detect(order, services, say=context.log.info, progress=watch)
    summary = done.summary
    if summary["cpu_fallback"]:
        context.log.warning(
            f"Analysed on the CPU: {summary['cpu_fallback']}. CAPSTONE_REQUIRE_GPU=true refuses this."
        )
    common: dict[str, Any] = {"detection_id": done.detection_id, "reused": done.reused}
    url = services.objects.url
    yield dg.Output(
        FramesReference(done.detection_id, done.prefix),
        "extracted_frames",
        metadata={
            **common,
            "frames_decoded": summary["frames_decoded"],
            "frames_analyzed": summary["frames_analyzed"],
            "duration_s": summary["duration_ms"] / 1000,
            "frames": dg.MetadataValue.path(url(done.prefix + "frames.parquet")),
            "contact_sheet": dg.MetadataValue.path(url(done.prefix + "contact_sheet.jpg")),
            **watch.times(),
        },
    )
    yield dg.Output(
        done,
        "detections",
        metadata={
            **common,
            "detections": summary["detections"],
            "tracks": summary["tracks"],
            "seconds": summary["seconds"],
            "frames_per_second": summary["frames_decoded"] / max(summary["seconds"], 1e-9),
            "model": summary["model"],
            "device": summary["device"],
            "backend": summary["backend"],
            "cpu_fallback": summary["cpu_fallback"] or "no",
            "parquet": dg.MetadataValue.path(url(done.prefix + "detections.parquet")),
        },
    )


@dg.op(retry_policy=RETRY, tags={"batch_gpu/compute": "cpu"})
def derive_events(
    context: dg.OpExecutionContext, detections: DetectionsReference, services: dg.ResourceParam[Services]
) -> EventsReference:
    """Turn detections into events by today's rules."""
    with explained(context, services, detections.upload.upload_id):
        derived = derive(detections, services, EventRules())
    context.log.info(f"{derived.events} events derived from {detections.summary['detections']} detections.")
    return derived


@dg.op(retry_policy=RETRY, tags={"batch_gpu/compute": "cpu"})
def persist_events(
    context: dg.OpExecutionContext, derived: EventsReference, services: dg.ResourceParam[Services]
) -> dg.Output[PublishedAnalysis]:
    """Publish the events in one transaction; what was published before only becomes current."""
    upload = derived.detections.upload
    # Publishing has tried a database that is away for long enough already, and a machine is held meanwhile.
    with explained(context, services, upload.upload_id, final={FailureClass.DATABASE_UNAVAILABLE}):
        requested_at = _requested_at(context)
        published, events = publish(derived, services, run_id=context.run_id, requested_at=requested_at)
    if not published.current:
        context.log.warning("A newer upload's analysis is current; this one is stored beside it.")
    return dg.Output(
        published,
        metadata={
            "events": published.events,
            "analysis_id": published.analysis_id,
            "current": published.current,
            "published_at": dg.MetadataValue.timestamp(published.published_at),
            "table": dg.MetadataValue.md(_table(events)),
        },
    )


@dg.graph_multi_asset(
    ins={"raw_videos": dg.AssetIn("raw_videos", dagster_type=dg.Nothing)},
    outs={
        "extracted_frames": dg.AssetOut(
            description="Which frames of a video were decoded and analysed, when, and how much moved.",
            kinds={"parquet", "s3"},
        ),
        "detections": dg.AssetOut(
            description="Every single detection of a video, tracked, as Parquet in object storage.",
            kinds={"ultralytics", "parquet", "s3"},
        ),
    },
    group_name="videos",
    partitions_def=videos,
)
def video_analysis(raw_videos):  # type: ignore[no-untyped-def]  # a graph's arguments are wires, not values
    """The streaming pass over an upload."""
    extracted_frames, detections = analyze_video(raw_videos)
    return {"extracted_frames": extracted_frames, "detections": detections}


@dg.graph_asset(
    description="Presences of people and faces, published to PostgreSQL: what consumers read.",
    group_name="videos",
    kinds={"postgres"},
    partitions_def=videos,
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


class _Watch:
    """Follows the pass over the pixels: remembers when it began and ended, and tells the event store.

    What consumers see of the progress is worth a try, not a failed analysis.
    """

    def __init__(self, context: dg.OpExecutionContext, services: Services) -> None:
        self._context = context
        self._services = services
        self._silent = False
        self.upload_id = ""
        self.first_frame_at: float | None = None
        self.last_frame_at: float | None = None

    def __call__(self, progress: Progress) -> None:
        self.last_frame_at = time.time()
        self.first_frame_at = self.first_frame_at or self.last_frame_at
        self.report(progress.fraction)

    def report(self, fraction: float) -> None:
        """Tell the event store how far it is, 0–1."""
        if self._silent:
            return
        try:
            # The last hundredth is publishing.
            self._services.events.mark_running(self.upload_id, self._context.run_id, min(fraction, 0.99))
        except StorageError as error:
            self._silent = True
            self._context.log.warning(f"Progress is no longer reported: {error}")

    def times(self) -> dict[str, dg.MetadataValue]:
        """When the first and the last frame were analysed; nothing if none was."""
        if self.first_frame_at is None or self.last_frame_at is None:
            return {}
        return {
            "first_frame_at": dg.MetadataValue.timestamp(self.first_frame_at),
            "last_frame_at": dg.MetadataValue.timestamp(self.last_frame_at),
        }


def _latest_upload(context: dg.OpExecutionContext, services: Services) -> VideoUpload:
    upload = services.events.latest_upload(context.partition_key)
    if upload is None:
        raise SourceMissing(
            f"No upload of {context.partition_key!r} is known. Upload the video, or announce it by a message."
        )
    return upload


def _requested_at(context: dg.OpExecutionContext) -> datetime:
    # Dagster's own retry of a lost worker is no new request; somebody's re-execution is.
    tags = run_tags(context)
    asked = tags["dagster/root_run_id"] if "dagster/retry_number" in tags else context.run_id
    record = context.instance.get_run_record_by_id(asked)
    return record.create_timestamp.astimezone(UTC) if record else datetime.now(UTC)


def _table(events: list[Any]) -> str:
    rows = ["| start | end | label | track | score | face |", "|---:|---:|---|---:|---:|---:|"]
    for event in events[:50]:
        face = "" if event.face_score is None else f"{event.face_score:.2f}"
        rows.append(
            f"| {event.start_ms / 1000:.1f} s | {event.end_ms / 1000:.1f} s | {event.label} "
            f"| {event.track_id} | {event.best_score:.2f} | {face} |"
        )
    return "\n".join(rows)
