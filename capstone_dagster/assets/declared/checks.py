"""The asset checks that Dagster shows: what is wrong or unusual about a video's results, with the reason.

A contradiction in the detections keeps `events` from being made of them; no other finding fails a run.
`steps.judging` looks, `steps.check_rules` decides.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from capstone_dagster.assets.declared.partitions import videos
from capstone_dagster.assets.failing import explained
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.check_rules import BLOCKING, HISTORY_FLOOR, some
from capstone_dagster.assets.steps.judging import (
    contradiction,
    evaluations,
    judge,
    judge_each,
    log_findings,
)
from capstone_dagster.assets.steps.references import DetectionsReference, PublishedAnalysis
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.videos import latest_upload

_CheckOutput = dg.AssetCheckEvaluation | dg.Output[None]

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
    yield from _judged(context, "detections", detections, services)


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
    yield from _judged(context, "events", events, services)


def _judged(
    context: dg.AssetCheckExecutionContext, asset: str, judged: Any, services: Services
) -> Iterator[_CheckOutput]:
    """One video's findings, or those of each video of a run over several.

    Raises:
        Failure: one video's detections contradict themselves; or, when all others are judged, the videos of
            which there is nothing to judge.
    """
    if isinstance(judged, Mapping):
        missing: list[str] = []
        for video_id, found in judge_each(judged, services):
            if found is None:
                missing.append(video_id)
            else:
                yield from evaluations(context.instance, asset, video_id, found)
        yield from _outputs(context)
        if missing:
            raise dg.Failure(
                f"There are no {asset} of {len(missing)} of {len(judged)} videos: {some(missing, most=20)}. "
                "Materialize them first. The others are judged.",
                allow_retries=False,
            )
        return
    findings = judge(judged, services)
    log = None if all(each.passed for each in findings) else _log_of(context, judged, services)
    if log is not None:
        log_findings(log, findings)
    yield from evaluations(context.instance, asset, judged.video_id, findings)
    yield from _outputs(context)
    if (error := contradiction(findings)) is not None and not _alone(context):
        with explained(context.op_execution_context, services, log):
            raise error


def _log_of(
    context: dg.AssetCheckExecutionContext,
    judged: DetectionsReference | PublishedAnalysis,
    services: Services,
) -> AnalysisLog | None:
    if isinstance(judged, DetectionsReference):
        return AnalysisLog(context.log, context.run.run_id, judged.upload)
    try:
        upload = services.database.transact(latest_upload, judged.video_id)
    except StorageError:
        return None  # the findings say that it does not answer
    return None if upload is None else AnalysisLog(context.log, context.run.run_id, upload)


def _alone(context: dg.AssetCheckExecutionContext) -> bool:
    """Whether the run only judges existing results: then no finding fails an upload."""
    return not any(True for _ in context.op_execution_context.job_def.asset_layer.executable_asset_keys)


def _outputs(context: dg.AssetCheckExecutionContext) -> Iterator[dg.Output[None]]:
    """What Dagster waits for of each check, where its findings are events of their own."""
    definition = context.op_execution_context.assets_def
    for key in definition.check_keys:
        yield dg.Output(None, definition.get_output_name_for_asset_check_key(key))
