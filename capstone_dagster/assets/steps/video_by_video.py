"""Many videos in one run: the model is loaded once, and a bad video does not fail its neighbours.

A backfill in the UI has runs over ranges of partitions, each of several videos; the job `analyze_videos`
takes any that are named. One video is finished, down to its published events, before the next begins, and its
assets are materialised as if it had had a run of its own: whenever such a run ends, whole videos are left. A
run that continues another one leaves out what that one has finished.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from capstone_dagster.analysis import EventRules
from capstone_dagster.assets.failing import (
    FailureSubject,
    explained,
    log_failure,
    partitions_of,
    record_failure,
    run_tags,
)
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.check_rules import some
from capstone_dagster.assets.steps.detection import AnalysisOrder
from capstone_dagster.assets.steps.duplicate_passes import Passes
from capstone_dagster.assets.steps.judging import contradiction, evaluations, judge, log_findings
from capstone_dagster.assets.steps.one_video import Made, analyze, known_upload, persist
from capstone_dagster.assets.steps.publication import derive
from capstone_dagster.assets.steps.references import DetectionsReference, PublishedAnalysis, keep_latest
from capstone_dagster.dagster_private import PARENT_RUN_ID_TAG, RESUME_RETRY_TAG
from capstone_dagster.failures.classes import POLICIES, FailureClass, classify, sentence
from capstone_dagster.failures.requests import is_later_try
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


def several_partitions(context: dg.OpExecutionContext) -> Sequence[str]:
    """The partitions of a run over a range of them; nothing where it is a run for one."""
    keys = partitions_of(context)
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
        order: makes the order for an upload.
        with_events: False, where the run was asked for detections alone.

    Raises:
        Failure: naming the videos that could not be analysed, when all others are finished; or at once, where
            the next one would fail for the same reason.
    """
    passes = Passes(context.instance, context.run_id, services)

    def work(video_id: str, subject: FailureSubject) -> None:
        began_at = time.time()
        upload = known_upload(video_id, services)
        log = subject.log = AnalysisLog(context.log, context.run_id, upload)
        with services.tracer.within(upload_context(upload.upload_id, upload.traceparent)):
            made = analyze(context, services, order(upload), log, passes)
            _finish(context, services, made, log)
            if with_events:
                done = made[-1].reference
                assert isinstance(done, DetectionsReference)
                _publish(context, services, done, log, began_at)

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
        began_at = time.time()
        done = detections[video_id]
        log = subject.log = AnalysisLog(context.log, context.run_id, done.upload)
        log.on_record(done.summary, "the detections were stored before")
        with services.tracer.within(upload_context(done.upload.upload_id, done.upload.traceparent)):
            _publish(context, services, done, log, began_at)

    _in_turn(context, services, videos, _EVENTS, work)


def _publish(
    context: dg.OpExecutionContext,
    services: Services,
    done: DetectionsReference,
    log: AnalysisLog,
    began_at: float,
) -> None:
    derived = derive(done, services, EventRules(), log)
    _finish(context, services, [persist(context, services, derived, log, began_at=began_at)], log)


def _finish(
    context: dg.OpExecutionContext, services: Services, made: Sequence[Made], log: AnalysisLog
) -> None:
    """Materialise what was made of a video, and record what the checks find in the last of it.

    Raises:
        ContradictoryDetections: no events may be made of it.
    """
    asset, reference = made[-1].asset, made[-1].reference
    assert isinstance(reference, (DetectionsReference, PublishedAnalysis))
    for each in made:
        keep_latest(services.objects, each.asset, reference.video_id, each.reference)
        context.log_event(
            dg.AssetMaterialization(each.asset, partition=reference.video_id, metadata=each.metadata)
        )
    findings = judge(reference, services)
    log_findings(log, findings)
    for evaluation in evaluations(context.instance, asset, reference.video_id, findings):
        # Dagster takes evaluations as well; its annotation lacks them.
        context.log_event(evaluation)  # type: ignore[arg-type]
    if (error := contradiction(findings)) is not None:
        raise error


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
    failed_before = _failed_for_good(context, services, earlier)
    failed: dict[str, FailureClass] = {}
    # As where a video has its own run: publishing has tried a database that is away for long enough.
    with explained(context, services, final={FailureClass.DATABASE_UNAVAILABLE}) as subject:
        for number, video_id in enumerate(videos, start=1):
            subject.log = None
            outcome, action = "", "video.begun"
            if video_id in finished:
                outcome, action = " was finished before.", "video.finished-before"
            elif video_id in failed_before:
                outcome, action = " failed for good before.", "video.failed-before"
                failed[video_id] = failed_before[video_id]
            context.log.info(
                f"Video {number} of {len(videos)}: {video_id}{outcome}",
                extra={"action": action, "video_id": video_id},
            )
            if outcome:
                continue
            try:
                work(video_id, subject)
            except UploadCancelled:
                raise
            except Exception as error:
                failure = classify(error)
                # A video that is being deleted does not concern the others.
                if failure not in _OF_ONE_VIDEO and not isinstance(error, ErasureUnderWay):
                    raise
                log_failure(context, subject.log, error, video_id=video_id)
                upload_id = subject.log.upload_id if subject.log is not None else None
                record_failure(context, services, upload_id, failure, sentence(error), video_id=video_id)
                failed[video_id] = failure
    if failed:
        raise _failure(context, failed, len(videos))


def _failure(context: dg.OpExecutionContext, failed: dict[str, FailureClass], videos: int) -> dg.Failure:
    # The run's class is one that is worth another try, where there is any.
    again = (failure for failure in failed.values() if POLICIES[failure].transient)
    worth = next(again, next(reversed(failed.values())))
    if context.instance.has_run(context.run_id):
        context.instance.add_run_tags(context.run_id, {FAILURE_TAG: worth.value})
    named = some([f"{video_id} ({failure.value})" for video_id, failure in failed.items()], most=20)
    message = f"{len(failed)} of {videos} videos could not be analysed: {named}. The others are published."
    # Without its class a bad video would be reported as a defect of this program.
    known = {"failure_class": worth.value, "cause": message, "remedy": POLICIES[worth].remedy}
    return dg.Failure(message, metadata={"failed": list(failed), **known}, allow_retries=False)


def _earlier_runs(context: dg.OpExecutionContext) -> list[str]:
    """The runs whose work this one continues: itself in an earlier try of this step, and its parents."""
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


def _failed_for_good(
    context: dg.OpExecutionContext, services: Services, earlier: Sequence[str]
) -> dict[str, FailureClass]:
    """Videos that failed for good in an earlier try; an operator who starts a run again has them retried."""
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
