"""Many videos in one run: the model is loaded once, and a bad video does not fail its neighbours.

A backfill in the UI has runs over ranges of partitions, each of several videos; the job `analyze_videos`
takes any that are named. One video is finished, down to its published events, before the next begins, and its
assets are materialised as if it had had a run of its own: whenever such a run ends, whole videos are left. A
run that goes on where another one stopped leaves out what that one has finished.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from capstone_dagster.analysis import EventRules
from capstone_dagster.assets.failing import (
    FailureSubject,
    explained,
    record_failure,
    run_tags,
    tell_failure,
)
from capstone_dagster.assets.shown import metadata
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.detection import AnalysisOrder, detect
from capstone_dagster.assets.steps.duplicate_passes import Passes
from capstone_dagster.assets.steps.judging import (
    evaluations,
    judge_detections,
    judge_events,
    log_findings,
    refuse_contradictions,
)
from capstone_dagster.assets.steps.progress import Watch, known_upload, warn
from capstone_dagster.assets.steps.publication import conclude, derive, publish
from capstone_dagster.assets.steps.references import (
    DetectionsReference,
    FramesReference,
    Reference,
    keep_latest,
)
from capstone_dagster.dagster_private import BACKFILL_ID_TAG, PARENT_RUN_ID_TAG, RESUME_RETRY_TAG
from capstone_dagster.failures.classes import POLICIES, FailureClass, classify, sentence
from capstone_dagster.failures.requests import is_later_try, request_run_id
from capstone_dagster.failures.retry_policy import failed_for_good
from capstone_dagster.run_tags import FAILURE_TAG
from capstone_dagster.services import Services
from capstone_dagster.storage.erasures import ErasureUnderWay
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.video_status import UploadCancelled, uploads_failed_in
from capstone_dagster.traces.context import upload_context

# What is wrong with one video says nothing about the next. Anything else would fail them all.
_OF_ONE_VIDEO = {
    FailureClass.UNDECODABLE_VIDEO,
    FailureClass.SOURCE_MISSING,
    FailureClass.SOURCE_FORBIDDEN,
    FailureClass.SOURCE_CHANGED,
    FailureClass.ANALYSIS_MISSING,
    FailureClass.GPU_OUT_OF_MEMORY,  # a single picture had no room: others are smaller
    FailureClass.INTERNAL,
}
_EVENTS = dg.AssetKey("events")
_DETECTIONS = dg.AssetKey("detections")
_FAILED_SHOWN = 20


def several_partitions(context: dg.OpExecutionContext) -> Sequence[str]:
    """The partitions of a run over a range of them; nothing where it is a run for one."""
    if not context.has_partition_key_range:
        return ()
    keys = context.partition_keys
    return keys if len(keys) > 1 else ()


def analyze_in_turn(
    context: dg.OpExecutionContext,
    services: Services,
    videos: Sequence[str],
    order: Callable[[VideoUpload], AnalysisOrder],
    *,
    with_events: bool,
) -> None:
    """Analyse the latest upload of each video, and publish its events.

    Args:
        order: what is wanted of an upload.
        with_events: False, where the run was asked for detections alone.

    Raises:
        Failure: naming the videos that could not be analysed, when all others are finished; or at once, where
            the next one would fail for the same reason.
    """
    passes = Passes(context.instance, context.run_id, services)

    def work(video_id: str, subject: FailureSubject) -> None:
        started = time.monotonic()
        upload = known_upload(video_id, services)
        turn = _Turn(context, services, upload, started)
        subject.story = turn.log
        with services.tracer.within(upload_context(upload.upload_id, upload.traceparent)):
            done = turn.detect(order(upload), passes)
            if with_events:
                turn.publish(done)

    _in_turn(context, services, videos, _EVENTS if with_events else _DETECTIONS, work)


def derive_in_turn(
    context: dg.OpExecutionContext,
    services: Services,
    videos: Sequence[str],
    detections: Mapping[str, DetectionsReference],
) -> None:
    """Derive each video's events from its stored detections and publish them; no pixel is looked at.

    Args:
        detections: by partition; those that are missing raise an error of their own when asked for.

    Raises:
        Failure: as above.
    """

    def work(video_id: str, subject: FailureSubject) -> None:
        started = time.monotonic()
        done = detections[video_id]
        turn = _Turn(context, services, done.upload, started)
        subject.story = turn.log
        turn.log.on_record(done.summary, "the detections were stored before")
        with services.tracer.within(upload_context(done.upload.upload_id, done.upload.traceparent)):
            turn.publish(done)

    _in_turn(context, services, videos, _EVENTS, work)


class _Turn:
    """One video's turn: what ops and checks do where it has a run of its own."""

    def __init__(
        self, context: dg.OpExecutionContext, services: Services, upload: VideoUpload, started: float
    ) -> None:
        self.log = AnalysisLog(context.log, context.run_id, upload)
        self._context = context
        self._services = services
        self._video_id = upload.video_id
        self._started = started

    def detect(self, order: AnalysisOrder, passes: Passes) -> DetectionsReference:
        """Frames and detections, judged."""
        services, log = self._services, self.log
        watch = Watch(self._context, services)
        watch.log = log
        watch.report(0.0)
        done = detect(order, services, log=log, progress=watch, passes=passes)
        warn(done.summary, log)
        frames = FramesReference(done.detection_id, done.prefix)
        tags = run_tags(self._context)
        self._materialize("extracted_frames", frames, metadata.of_frames(done, services, watch.times(), tags))
        self._log(metadata.of_video(done, self._services))
        self._materialize("detections", done, metadata.of_detections(done, services, tags))
        findings = judge_detections(done, services)
        log_findings(log, findings)
        self._log(*evaluations(self._context.instance, "detections", self._video_id, findings))
        refuse_contradictions(findings)
        return done

    def publish(self, done: DetectionsReference) -> None:
        """Events, published and judged."""
        context, services, log = self._context, self._services, self.log
        derived = derive(done, services, EventRules())
        log.derived(derived.events, done.summary.detections)
        published, events = publish(
            derived,
            services,
            run_id=context.run_id,
            requested_at=requested_at(context, run_tags(context)),
            log=log,
        )
        conclude(published, done.summary, log, elapsed_s=time.monotonic() - self._started)
        shown = metadata.of_publication(published, events, derived, services, run_tags(context))
        self._materialize("events", published, shown)
        findings = judge_events(published, services)
        log_findings(log, findings)
        self._log(*evaluations(self._context.instance, "events", self._video_id, findings))

    def _materialize(self, asset: str, reference: Reference, shown: metadata.Metadata) -> None:
        """Each as soon as it is true."""
        keep_latest(self._services.objects, asset, self._video_id, reference)
        self._log(dg.AssetMaterialization(asset, partition=self._video_id, metadata=shown))

    def _log(self, *events: dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation) -> None:
        for event in events:
            # Dagster takes evaluations as well; its annotation lacks them.
            self._context.log_event(event)  # type: ignore[arg-type]


def _in_turn(
    context: dg.OpExecutionContext,
    services: Services,
    videos: Sequence[str],
    last_asset: dg.AssetKey,
    work: Callable[[str, FailureSubject], None],
) -> None:
    # A video named twice is one video; the order asked for is kept.
    videos = list(dict.fromkeys(videos))
    earlier = _earlier_runs(context)
    finished = _finished(context, last_asset, earlier)
    hopeless = _hopeless(context, services, earlier)
    failed: dict[str, FailureClass] = {}
    # As where a video has its own run: publishing has tried a database that is away for long enough.
    with explained(context, services, final={FailureClass.DATABASE_UNAVAILABLE}) as subject:
        for number, video_id in enumerate(videos, start=1):
            subject.story = None
            if video_id in finished:
                context.log.info(
                    f"Video {number} of {len(videos)}: {video_id} was finished before.",
                    extra={"action": "video.finished-before", "video_id": video_id},
                )
                continue
            if video_id in hopeless:
                context.log.info(
                    f"Video {number} of {len(videos)}: {video_id} failed for good before.",
                    extra={"action": "video.failed-before", "video_id": video_id},
                )
                failed[video_id] = hopeless[video_id]
                continue
            context.log.info(
                f"Video {number} of {len(videos)}: {video_id}",
                extra={"action": "video.begun", "video_id": video_id},
            )
            try:
                work(video_id, subject)
            except UploadCancelled:
                raise
            except Exception as error:
                failure = classify(error)
                # One that is being deleted, or whose deletion was broken off, is no trouble of the others'.
                if failure not in _OF_ONE_VIDEO and not isinstance(error, ErasureUnderWay):
                    raise
                # Taken before it is set again below.
                log = subject.story
                tell_failure(context, log, error, video_id=video_id)
                upload_id = log.upload_id if log is not None else None
                record_failure(context, services, upload_id, failure, sentence(error), video_id=video_id)
                failed[video_id] = failure
    if failed:
        # The run's class is one that is worth another try, where there is any.
        again = (failure for failure in failed.values() if POLICIES[failure].transient)
        worth = next(again, next(reversed(failed.values())))
        if context.instance.has_run(context.run_id):
            context.instance.add_run_tags(context.run_id, {FAILURE_TAG: worth.value})
        named = [f"{video_id} ({failure.value})" for video_id, failure in failed.items()]
        more = f" and {len(named) - _FAILED_SHOWN} more" if len(named) > _FAILED_SHOWN else ""
        message = (
            f"{len(failed)} of {len(videos)} videos could not be analysed: "
            f"{', '.join(named[:_FAILED_SHOWN])}{more}. The others are published."
        )
        # Without its class a bad video would be reported as a defect of this program.
        known = {"failure_class": worth.value, "cause": message, "remedy": POLICIES[worth].remedy}
        raise dg.Failure(
            message,
            metadata={"failed": list(failed), **known},
            allow_retries=False,
        )


def _earlier_runs(context: dg.OpExecutionContext) -> list[str]:
    """The runs whose work this one goes on with: itself in an earlier try of this step, and its parents."""
    instance = context.instance
    run = instance.get_run_by_id(context.run_id)
    earlier = [context.run_id] if run is not None and context.retry_number else []
    while run is not None and run.tags.get(RESUME_RETRY_TAG) == "true" and PARENT_RUN_ID_TAG in run.tags:
        run = instance.get_run_by_id(run.tags[PARENT_RUN_ID_TAG])
        if run is not None:
            earlier.append(run.run_id)
    return earlier


def _finished(context: dg.OpExecutionContext, asset: dg.AssetKey, earlier: Sequence[str]) -> set[str]:
    """Videos of which an earlier try made the asset."""
    of_type = dg.DagsterEventType.ASSET_MATERIALIZATION
    made = [
        context.instance.get_asset_partitions_for_run(each, of_type).get(asset, set()) for each in earlier
    ]
    return {video_id for videos in made for video_id in videos if video_id is not None}


def _hopeless(
    context: dg.OpExecutionContext, services: Services, earlier: Sequence[str]
) -> dict[str, FailureClass]:
    """Videos that failed for good in an earlier try; somebody who starts a run again has them tried anew."""
    if not earlier or not (context.retry_number or is_later_try(run_tags(context))):
        return {}
    try:
        rows = services.database.transact(uploads_failed_in, earlier)
    except StorageError:
        return {}  # they fail once more, no worse
    return {
        row["video_id"]: FailureClass(row["failure_class"])
        for row in rows
        if failed_for_good(row["failure_class"])
    }


def requested_at(context: dg.OpExecutionContext, tags: Mapping[str, str]) -> datetime:
    """When somebody asked for what a run does."""
    # A try that Dagster or the system makes by itself is no new request; somebody's re-execution is.
    asked = request_run_id(context.run_id, tags)
    record = context.instance.get_run_record_by_id(asked)
    if record is None:
        return datetime.now(UTC)
    run = record.dagster_run
    # A backfill makes its runs little by little; a rollback meanwhile was asked for after all of them.
    if BACKFILL_ID_TAG in run.tags and run.parent_run_id is None:
        backfill = context.instance.get_backfill(run.tags[BACKFILL_ID_TAG])
        if backfill is not None:
            return datetime.fromtimestamp(backfill.backfill_timestamp, UTC)
    return record.create_timestamp.astimezone(UTC)
