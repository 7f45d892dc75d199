"""The asset checks that Dagster shows: what is wrong or unusual about a video's results, with the reason.

A contradiction in the detections keeps `events` from being made of them; no other finding fails a run.
`steps.judging` looks, `steps.check_rules` decides.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from capstone_dagster.assets.declared.partitions import videos
from capstone_dagster.assets.failing import explained
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.check_rules import BLOCKING, HISTORY_FLOOR, Finding
from capstone_dagster.assets.steps.judging import (
    evaluations,
    judge_detections,
    judge_each,
    judge_events,
    log_findings,
    refuse_contradictions,
)
from capstone_dagster.assets.steps.references import DetectionsReference, PublishedAnalysis, Reference
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.videos import latest_upload

_CheckOutput = dg.AssetCheckEvaluation | dg.Output[None]
_MISSING_SHOWN = 20

_DETECTIONS: Mapping[str, str] = {
    "frames_complete": "Stored frames are those that were decoded, numbered and timed in order, and "
    "timestamps leave no room for others. Contradictions are errors; a damaged or thinned video is a "
    "warning.",
    "boxes_inside_frame": "Every detection is stored, with a box inside the frame.",
    "scores_in_range": "Every score lies between the least one kept and 1.",
    "configured_model": "The model is the configured one, or the one that the request named; by its SHA-256 "
    "where it is pinned or at hand, else by its name.",
    "picture_visible": "The contact sheet is neither black, covered nor blurred, and frames differ from one "
    "another.",
    "expected_device": "No GPU was left unused that could have been used.",
    "tracks_lasting": "Of ten tracks or more, not half last less than a second.",
}
_EVENTS: Mapping[str, str] = {
    "events_stored": "The database has the events that were derived from the detections, and no others.",
    "events_apart": "No two events of one track overlap.",
    "usual_detection_rate": "As many detections a minute as this camera's latest videos had; silent below "
    f"{HISTORY_FLOOR} of them.",
    "usual_confidence": "As sure as the same model usually is with this camera; silent below "
    f"{HISTORY_FLOOR} videos.",
    "expected_latency": "From upload to database within CAPSTONE_RUN_LIMIT_MINUTES, or "
    "CAPSTONE_RUN_LIMIT_PER_VIDEO for a long video.",
}

# In words, how bad a failure is of the checks that hold nothing up.
SEVERITIES: Mapping[str, str] = {
    name: "an error" if name in ("events_stored", "events_apart") else "a warning"
    for name in (*_DETECTIONS, *_EVENTS)
}


# None of them can be executed alone (`can_subset`): Dagster's page would start a run without a partition for
# it, which fails before anything of ours begins. The job `check_videos` is for that.
def _specs(asset: str, descriptions: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        # Dagster calls checks of a partition a preview; without them a check says nothing of which video.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                name, asset=asset, description=description, blocking=name in BLOCKING, partitions_def=videos
            )
            for name, description in descriptions.items()
        ]


@dg.multi_asset_check(
    specs=_specs("detections", _DETECTIONS),
    description="Judges a video's detections by what its pass has stored, without looking at a pixel.",
    op_tags={"batch_gpu/compute": "cpu"},
)
def detections_checks(
    context: dg.AssetCheckExecutionContext,
    detections: Any,  # a DetectionsReference, or a mapping of them, for which Dagster has no type
    services: dg.ResourceParam[Services],
) -> Iterator[_CheckOutput]:
    """All checks in one step; events follow only where nothing contradicts itself."""
    if not isinstance(detections, DetectionsReference):
        yield from _of_range(context, detections, lambda each: judge_detections(each, services))
        return
    findings = judge_detections(detections, services)
    log = AnalysisLog(context.log, context.run.run_id, detections.upload)
    log_findings(log, findings)
    yield from _of_one(context, findings, detections.upload.video_id)
    if not _alone(context):
        with explained(context.op_execution_context, services, log):
            refuse_contradictions(findings)


@dg.multi_asset_check(
    specs=_specs("events", _EVENTS),
    description="Judges a video's published events by the database and by the camera's other videos.",
    op_tags={"batch_gpu/compute": "cpu"},
)
def events_checks(
    context: dg.AssetCheckExecutionContext,
    events: Any,  # as above, of PublishedAnalysis
    services: dg.ResourceParam[Services],
) -> Iterator[_CheckOutput]:
    """All checks in one step; nothing follows it."""
    if not isinstance(events, PublishedAnalysis):
        yield from _of_range(context, events, lambda each: judge_events(each, services))
        return
    findings = judge_events(events, services)
    if not all(each.passed for each in findings):
        _log_of_video(context, events.video_id, services, findings)
    yield from _of_one(context, findings, events.video_id)


def _log_of_video(
    context: dg.AssetCheckExecutionContext, video_id: str, services: Services, findings: Sequence[Finding]
) -> None:
    try:
        upload = services.database.transact(latest_upload, video_id)
    except StorageError:
        return  # the findings say that it does not answer
    if upload is not None:
        log_findings(AnalysisLog(context.log, context.run.run_id, upload), findings)


def _alone(context: dg.AssetCheckExecutionContext) -> bool:
    """Whether the run only judges what was made before: then no upload has failed, whatever is found."""
    return not any(True for _ in context.op_execution_context.job_def.asset_layer.executable_asset_keys)


def _of_one(
    context: dg.AssetCheckExecutionContext, findings: Sequence[Finding], video_id: str
) -> Iterator[_CheckOutput]:
    yield from evaluations(context.instance, _judged_asset(context), video_id, findings)
    yield from _outputs(context)


def _of_range(
    context: dg.AssetCheckExecutionContext,
    references: Mapping[str, Reference],
    judge: Callable[[Any], list[Finding]],
) -> Iterator[_CheckOutput]:
    """Each video's findings, one after the other.

    Raises:
        Failure: naming videos of which there is nothing to judge, when all others are judged.
    """
    asset = _judged_asset(context)
    missing: list[str] = []
    for video_id, findings in judge_each(references, judge):
        if findings is None:
            missing.append(video_id)
        else:
            yield from evaluations(context.instance, asset, video_id, findings)
    yield from _outputs(context)
    if missing:
        more = " and more" if len(missing) > _MISSING_SHOWN else ""
        raise dg.Failure(
            f"There are no {asset} of {len(missing)} of {len(references)} videos: "
            f"{', '.join(missing[:_MISSING_SHOWN])}{more}. Materialize them first. The others are judged.",
            allow_retries=False,
        )


def _outputs(context: dg.AssetCheckExecutionContext) -> Iterator[dg.Output[None]]:
    """What Dagster waits for of each check, where its findings are events of their own."""
    definition = context.op_execution_context.assets_def
    for key in definition.check_keys:
        yield dg.Output(None, definition.get_output_name_for_asset_check_key(key))


def _judged_asset(context: dg.AssetCheckExecutionContext) -> str:
    """Name of the asset whose checks these are."""
    return next(iter(context.op_execution_context.assets_def.check_keys)).asset_key.to_user_string()
