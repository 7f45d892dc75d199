"""Many videos in one run: the model is loaded once, and a bad video does not fail its neighbours.

A backfill in the UI starts a run for each partition, which is the right thing for a few. Analysing hundreds
again, with a new model say, is what this job is for; each video's assets are materialised as if it had had a
run of its own.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from capstone_dagster.analysis import EventRules
from capstone_dagster.assets import metadata
from capstone_dagster.assets.analyze import AnalysisOrder, detect
from capstone_dagster.assets.checks import (
    evaluations,
    judge_detections,
    judge_events,
    refuse_contradictions,
    tell_verdicts,
)
from capstone_dagster.assets.failing import as_failure, record_failure, run_tags, tell_failure
from capstone_dagster.assets.passes import Passes
from capstone_dagster.assets.progress import Watch, latest_upload, warn
from capstone_dagster.assets.publish import conclude, derive, publish
from capstone_dagster.assets.references import FramesReference, Reference, keep_latest
from capstone_dagster.assets.story import Story
from capstone_dagster.observability.failures import FailureClass, classify, sentence
from capstone_dagster.services import Services

# What is wrong with one video says nothing about the next. Anything else would fail them all.
_OF_ONE_VIDEO = {
    FailureClass.UNDECODABLE_VIDEO,
    FailureClass.SOURCE_MISSING,
    FailureClass.SOURCE_FORBIDDEN,
    FailureClass.SOURCE_CHANGED,
    FailureClass.GPU_OUT_OF_MEMORY,  # a single picture had no room: others are smaller
    FailureClass.INTERNAL,
}


class AnalyzeVideosConfig(dg.Config):
    """Which videos to analyse again, and what to want other than usual.

    `videos` are partition keys; of each the latest upload is analysed. Detections that exist already are
    reused; `nonce`, any text, has the work done again.
    """

    videos: list[str]
    sample_fps: float | None = None
    model: str | None = None
    nonce: str | None = None


@dg.op(pool="gpu", out=dg.Out(dg.Nothing), tags={"batch_gpu/compute": "gpu"})
def analyze_each(
    context: dg.OpExecutionContext, config: AnalyzeVideosConfig, services: dg.ResourceParam[Services]
) -> None:
    """Analyse the latest upload of each video and publish its events, one after the other."""
    # A video named twice is one video; the order asked for is kept.
    videos = list(dict.fromkeys(config.videos))
    failed: dict[str, FailureClass] = {}
    passes = Passes(context.instance, context.run_id, services)
    for number, video_id in enumerate(videos, start=1):
        context.log.info(
            f"Video {number} of {len(videos)}: {video_id}",
            extra={"action": "video.begun", "video_id": video_id},
        )
        upload_id = story = None
        try:
            upload = latest_upload(video_id, services)
            upload_id = upload.upload_id
            story = Story(context.log, context.run_id, upload)
            order = AnalysisOrder(upload, config.sample_fps, config.model, config.nonce)
            for event in _analyzed(context, order, services, story, passes):
                # Dagster takes evaluations as well, and forgets to say so.
                context.log_event(event)  # type: ignore[arg-type]
        except Exception as error:
            failure = classify(error)
            tell_failure(context, story, error, video_id=video_id)
            record_failure(context, services, upload_id, failure, sentence(error))
            if failure not in _OF_ONE_VIDEO:
                raise as_failure(error) from error
            failed[video_id] = failure
    if failed:
        told = ", ".join(f"{video_id} ({failure.value})" for video_id, failure in failed.items())
        raise dg.Failure(
            f"{len(failed)} of {len(videos)} videos could not be analysed: {told}. The others are published.",
            metadata={"failed": list(failed)},
            allow_retries=False,
        )


def _analyzed(
    context: dg.OpExecutionContext, order: AnalysisOrder, services: Services, story: Story, passes: Passes
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """What the ops and checks do, for one video: its materialisations, each as soon as it is true."""
    video_id = order.upload.video_id
    started = time.monotonic()
    watch = Watch(context, services)
    watch.story = story
    watch.report(0.0)
    done = detect(order, services, story=story, progress=watch, passes=passes)
    warn(done.summary, story)

    def materialization(
        asset: str, reference: Reference, shown: metadata.Metadata
    ) -> dg.AssetMaterialization:
        keep_latest(services.objects, asset, video_id, reference)
        return dg.AssetMaterialization(asset, partition=video_id, metadata=shown)

    frames = FramesReference(done.detection_id, done.prefix)
    tags = run_tags(context)
    yield materialization("extracted_frames", frames, metadata.of_frames(done, services, watch.times(), tags))
    yield materialization("detections", done, metadata.of_detections(done, services, tags))
    judged = judge_detections(done, services)
    tell_verdicts(story, judged)
    yield from evaluations("detections", video_id, judged)
    refuse_contradictions(judged)
    derived = derive(done, services, EventRules())
    story.derived(derived.events, done.summary["detections"])
    record = context.instance.get_run_record_by_id(context.run_id)
    requested_at = record.create_timestamp.astimezone(UTC) if record else datetime.now(UTC)
    published, events = publish(
        derived, services, run_id=context.run_id, requested_at=requested_at, story=story
    )
    conclude(published, done.summary, story, elapsed_s=time.monotonic() - started)
    shown = metadata.of_publication(published, events, derived, services, tags)
    yield materialization("events", published, shown)
    judged = judge_events(published, services)
    tell_verdicts(story, judged)
    yield from evaluations("events", video_id, judged)


@dg.job(description="Analyses many videos in one run, with one loaded model; name them in the configuration.")
def analyze_videos() -> None:
    """One op, so that one process does it all."""
    analyze_each()
