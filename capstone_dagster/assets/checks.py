"""Asset checks: what is wrong or unusual about a video's results, in Dagster's UI, with the reason.

Facts come from what the pass has stored and from the event store, which costs no look at the pixels; what
they mean is said in `verdicts`. A contradiction in the detections keeps `events` from being made of them.
Beside that nothing here fails a run: a check that could not look says so.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import dagster as dg
import pyarrow as pa

from capstone_dagster.analysis import look_at_sheet, model_sha256, read_detections, read_events, read_frames
from capstone_dagster.assets import verdicts
from capstone_dagster.assets.failing import explained
from capstone_dagster.assets.partitions import videos
from capstone_dagster.assets.publish import EVENTS_FILE
from capstone_dagster.assets.references import DetectionsReference, PublishedAnalysis, Reference
from capstone_dagster.assets.story import Story
from capstone_dagster.assets.temporary import temporary_folder
from capstone_dagster.assets.verdicts import DetectionFacts, FrameFacts, Severity, Verdict
from capstone_dagster.failures.classes import sentence
from capstone_dagster.model_files import EMBEDDED_MODEL
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.analysis_statistics import AnalysisFigures, camera_history
from capstone_dagster.storage.errors import ObjectNotFound, StorageError
from capstone_dagster.storage.events import events_of
from capstone_dagster.storage.videos import latest_upload

_Said = dg.AssetCheckResult | dg.AssetCheckEvaluation | dg.Output[None]
_MISSING_SHOWN = 20
# So many of a camera's latest videos tell what is usual; they are read in one query.
_HISTORY = 200

# Each check of `detections`, and whether events are made in spite of it.
_OF_DETECTIONS: Mapping[str, tuple[str, bool]] = {
    "frames_complete": (
        "Stored frames are those that were decoded, numbered and timed in order, and timestamps leave no "
        "room for others. Contradictions are errors; a damaged or thinned video is a warning.",
        True,
    ),
    "boxes_inside_frame": ("Every detection is stored, with a box inside the frame.", True),
    "scores_in_range": ("Every score lies between the least one kept and 1.", True),
    "configured_model": (
        "The model is the configured one, or the one that the request named; by its SHA-256 where it is "
        "pinned or at hand, else by its name.",
        True,
    ),
    "picture_visible": (
        "The contact sheet is neither black, covered nor blurred, and frames differ from one another.",
        False,
    ),
    "expected_device": ("No GPU was left unused that could have been used.", False),
    "tracks_lasting": ("Of ten tracks or more, not half last less than a second.", False),
}
_OF_EVENTS: Mapping[str, str] = {
    "events_stored": "The database has the events that were derived from the detections, and no others.",
    "events_apart": "No two events of one track overlap.",
    "usual_detection_rate": "As many detections a minute as this camera's latest videos had; silent below "
    f"{verdicts.HISTORY_FLOOR} of them.",
    "usual_confidence": "As sure as the same model usually is with this camera; silent below "
    f"{verdicts.HISTORY_FLOOR} videos.",
    "expected_latency": "From upload to database within CAPSTONE_RUN_LIMIT_MINUTES, or "
    "CAPSTONE_RUN_LIMIT_PER_VIDEO for a long video.",
}

# In words, how bad a failure is of those that hold nothing up.
_ERRORS_OF_EVENTS = {"events_stored", "events_apart"}
SEVERITIES: Mapping[str, str] = {
    name: "an error" if name in _ERRORS_OF_EVENTS else "a warning" for name in (*_OF_DETECTIONS, *_OF_EVENTS)
}


class ContradictoryDetections(Exception):
    """Detections contradict themselves or the settings: no events are made of them."""

    failure_class = "internal"


def judge_detections(detections: DetectionsReference, services: Services) -> list[Verdict]:
    """What the checks of `detections` say of one video; never raises."""
    summary, settings = detections.summary, detections.settings

    def stored() -> list[Verdict]:
        found = _detections(detections, services)
        return [
            verdicts.frames_complete(_frames(detections, services), summary),
            verdicts.boxes_inside_frame(found, summary),
            verdicts.scores_in_range(found, settings["min_score"]),
            verdicts.tracks_lasting(found),
        ]

    def model() -> list[Verdict]:
        name, sha256 = _expected_model(detections, services)
        requested = detections.requested_model is not None
        return [verdicts.configured_model(summary, name=name, sha256=sha256, requested=requested)]

    def picture() -> list[Verdict]:
        seen = look_at_sheet(
            services.objects.get_bytes(detections.prefix + "contact_sheet.jpg"),
            width=summary.width,
            height=summary.height,
            frames=summary.frames_analyzed,
        )
        return [verdicts.picture_visible(seen, _frames(detections, services).still, summary.duration_ms)]

    return [
        *_judged(
            ("frames_complete", "boxes_inside_frame", "scores_in_range", "tracks_lasting"),
            stored,
            # Results that are gone or unreadable are no trouble on the way to them.
            damage=(ObjectNotFound, pa.ArrowInvalid, ValueError),
        ),
        *_judged(("configured_model",), model),
        *_judged(("picture_visible",), picture),
        *_judged(("expected_device",), lambda: [verdicts.expected_device(summary)]),
    ]


def judge_events(published: PublishedAnalysis, services: Services) -> list[Verdict]:
    """What the checks of `events` say of one video; never raises."""
    analysis_id = published.analysis_id

    def stored() -> list[Verdict]:
        rows = services.database.transact(events_of, analysis_id)
        with temporary_folder() as folder:
            path = folder / EVENTS_FILE
            services.objects.get_file(f"analyses/{analysis_id}/{EVENTS_FILE}", path)
            derived = read_events(path)
        return [verdicts.events_stored(rows, derived), verdicts.events_apart(rows)]

    @cache
    def figures() -> tuple[AnalysisFigures, list[AnalysisFigures]]:
        this, others = services.database.transact(camera_history, analysis_id, limit=_HISTORY)
        if this is None:
            raise LookupError(f"analysis {analysis_id} was deleted meanwhile")
        return this, others

    def history() -> list[Verdict]:
        this, others = figures()
        return [verdicts.usual_detection_rate(this, others), verdicts.usual_confidence(this, others)]

    def latency() -> list[Verdict]:
        analyses = services.database.transact(analyses_of, published.video_id)
        [this] = [row for row in analyses if row["analysis_id"] == analysis_id]
        first = next(row for row in analyses if row["upload_id"] == this["upload_id"])
        settings, video_s = services.settings, (figures()[0].duration_ms or 0) / 1000
        verdict = verdicts.expected_latency(
            (this["published_at"] - this["uploaded_at"]).total_seconds(),
            limit_s=max(60 * settings.run_limit_minutes, settings.run_limit_per_video * video_s),
            first=first["analysis_id"] == analysis_id,
        )
        return [verdict]

    return [
        *_judged(("events_stored", "events_apart"), stored, damage=(ObjectNotFound, pa.ArrowInvalid)),
        *_judged(("usual_detection_rate", "usual_confidence"), history),
        *_judged(("expected_latency",), latency),
    ]


def refuse_contradictions(judged: Sequence[Verdict]) -> None:
    """Nothing, unless a verdict says that the detections cannot be true.

    Raises:
        ContradictoryDetections: with the reasons.
    """
    wrong = [verdict for verdict in judged if not verdict.passed and verdict.severity == Severity.ERROR]
    if wrong:
        told = " ".join(f"{verdict.check}: {verdict.told}" for verdict in wrong)
        raise ContradictoryDetections(f"No events are made of these detections. {told}")


def tell_verdicts(story: Story | None, judged: Sequence[Verdict]) -> None:
    """One line in the log for each check that failed; none without a story to tell them in."""
    for verdict in judged:
        if story is not None and not verdict.passed:
            story.say(
                f"Check {verdict.check}: {verdict.told}",
                action="check.failed",
                level=logging.ERROR if verdict.severity == Severity.ERROR else logging.WARNING,
                check=verdict.check,
                severity=verdict.severity.value,
            )


def evaluations(asset: str, video_id: str, judged: Sequence[Verdict]) -> Iterator[dg.AssetCheckEvaluation]:
    """Verdicts as events of a run that has no step of its own for them, as where it analyses many videos."""
    for verdict in judged:
        result = _result(verdict, video_id)
        yield dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset),
            check_name=verdict.check,
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
            blocking=verdict.check in _OF_DETECTIONS and _OF_DETECTIONS[verdict.check][1],
            partition=video_id,
        )


def evaluations_in_turn(
    asset: str, references: Mapping[str, Reference], judge: Callable[[Any], list[Verdict]]
) -> Iterator[dg.AssetCheckEvaluation | str]:
    """Many videos' verdicts, one video after the other; of one without a reference its id alone.

    Args:
        references: the asset's, by partition; a missing one raises a `StorageError` when asked for.
    """
    for video_id in references:
        try:
            reference = references[video_id]
        except StorageError:
            yield video_id
        else:
            yield from evaluations(asset, video_id, judge(reference))


# None of them can be executed alone (`can_subset`): Dagster's page would start a run without a partition for
# it, which fails before anything of ours begins. The job `check_videos` is for that.
def _specs(asset: str, checks: Mapping[str, tuple[str, bool]]) -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        # Dagster calls checks of a partition a preview; without them a check says nothing of which video.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(name, asset=asset, description=told, blocking=blocking, partitions_def=videos)
            for name, (told, blocking) in checks.items()
        ]


@dg.multi_asset_check(
    specs=_specs("detections", _OF_DETECTIONS),
    description="Judges a video's detections by what its pass has stored, without looking at a pixel.",
    op_tags={"batch_gpu/compute": "cpu"},
)
def detections_checks(
    context: dg.AssetCheckExecutionContext,
    detections: Any,  # a DetectionsReference, or a mapping of them, for which Dagster has no type
    services: dg.ResourceParam[Services],
) -> Iterator[_Said]:
    """All checks in one step; events follow only where nothing contradicts itself."""
    if not isinstance(detections, DetectionsReference):
        yield from _of_several(context, detections, lambda each: judge_detections(each, services))
        return
    judged = judge_detections(detections, services)
    story = Story(context.log, context.run.run_id, detections.upload)
    tell_verdicts(story, judged)
    yield from _of_one(context, judged, detections.upload.video_id)
    if not _alone(context):
        with explained(context.op_execution_context, services, story):
            refuse_contradictions(judged)


@dg.multi_asset_check(
    specs=_specs("events", {name: (told, False) for name, told in _OF_EVENTS.items()}),
    description="Judges a video's published events by the database and by the camera's other videos.",
    op_tags={"batch_gpu/compute": "cpu"},
)
def events_checks(
    context: dg.AssetCheckExecutionContext,
    events: Any,  # as above, of PublishedAnalysis
    services: dg.ResourceParam[Services],
) -> Iterator[_Said]:
    """All checks in one step; nothing follows it."""
    if not isinstance(events, PublishedAnalysis):
        yield from _of_several(context, events, lambda each: judge_events(each, services))
        return
    judged = judge_events(events, services)
    tell_verdicts(_told_by(context, events.video_id, services), judged)
    yield from _of_one(context, judged, events.video_id)


def _alone(context: dg.AssetCheckExecutionContext) -> bool:
    """Whether the run only judges what was made before: then no upload has failed, whatever they say."""
    return not any(True for _ in context.op_execution_context.job_def.asset_layer.executable_asset_keys)


def _of_one(
    context: dg.AssetCheckExecutionContext, judged: Sequence[Verdict], video_id: str
) -> Iterator[_Said]:
    if not context.op_execution_context.has_partition_key_range:
        for verdict in judged:
            yield _result(verdict, video_id)
        return
    # Of a range, be it of one, Dagster would not say which partition was judged.
    yield from evaluations(_judged_asset(context), video_id, judged)
    yield from _outputs(context)


def _of_several(
    context: dg.AssetCheckExecutionContext,
    references: Mapping[str, Reference],
    judge: Callable[[Any], list[Verdict]],
) -> Iterator[_Said]:
    """Each video's verdicts, one after the other.

    Raises:
        Failure: naming videos of which there is nothing to judge, when all others are judged.
    """
    asset = _judged_asset(context)
    missing: list[str] = []
    for said in evaluations_in_turn(asset, references, judge):
        if isinstance(said, str):
            missing.append(said)
        else:
            yield said
    yield from _outputs(context)
    if missing:
        told = f"{', '.join(missing[:_MISSING_SHOWN])}{' and more' if len(missing) > _MISSING_SHOWN else ''}"
        raise dg.Failure(
            f"There are no {asset} of {len(missing)} of {len(references)} videos: {told}. Materialize them "
            "first. The others are judged.",
            allow_retries=False,
        )


def _outputs(context: dg.AssetCheckExecutionContext) -> Iterator[dg.Output[None]]:
    """What Dagster waits for of each check, where its verdicts are events of their own."""
    definition = context.op_execution_context.assets_def
    for key in definition.check_keys:
        yield dg.Output(None, definition.get_output_name_for_asset_check_key(key))


def _judged_asset(context: dg.AssetCheckExecutionContext) -> str:
    """Name of the asset whose checks these are."""
    return next(iter(context.op_execution_context.assets_def.check_keys)).asset_key.to_user_string()


def _judged(
    checks: Sequence[str],
    judge: Callable[[], list[Verdict]],
    *,
    damage: tuple[type[Exception], ...] = (),
) -> list[Verdict]:
    """The verdicts; where they cannot be had a warning in their place, or an error if results are damaged."""
    try:
        return judge()
    except damage as error:
        told = f"What was stored cannot be read: {sentence(error)} Analyse the video again with `force`."
        return [Verdict(check, False, _damaged(check), told) for check in checks]
    except Exception as error:  # law: what only observes fails no run
        told = f"Could not be judged: {sentence(error)} Materialise the asset again."
        return [Verdict(check, False, Severity.WARN, told) for check in checks]


def _damaged(check: str) -> Severity:
    blocking = _OF_DETECTIONS[check][1] if check in _OF_DETECTIONS else True
    return Severity.ERROR if blocking else Severity.WARN


def _frames(detections: DetectionsReference, services: Services) -> FrameFacts:
    with temporary_folder() as folder:
        path = folder / "frames.parquet"
        services.objects.get_file(detections.prefix + path.name, path)
        return FrameFacts.of(read_frames(path))


def _detections(detections: DetectionsReference, services: Services) -> DetectionFacts:
    summary = detections.summary
    with temporary_folder() as folder:
        path = folder / "detections.parquet"
        services.objects.get_file(detections.prefix + path.name, path)
        return DetectionFacts.of(
            read_detections(path),
            width=summary.width,
            height=summary.height,
            min_score=detections.settings["min_score"],
        )


def _expected_model(detections: DetectionsReference, services: Services) -> tuple[str, str | None]:
    """The model that was to be used: its name, and its SHA-256 where nothing has to be fetched for it."""
    model = detections.requested_model or services.settings.model
    path = services.model_path(model) if model == EMBEDDED_MODEL else Path(model).expanduser()
    name = PurePosixPath(model).name if model.startswith("s3://") else path.name
    if detections.requested_model is None and services.settings.model_sha256 is not None:
        return name, services.settings.model_sha256
    return name, model_sha256(path) if path.exists() else None


def _told_by(context: dg.AssetCheckExecutionContext, video_id: str, services: Services) -> Story | None:
    try:
        upload = services.database.transact(latest_upload, video_id)
    except StorageError:
        return None
    return None if upload is None else Story(context.log, context.run.run_id, upload)


def _result(verdict: Verdict, video_id: str) -> dg.AssetCheckResult:
    values: dict[str, Any] = {
        name: round(value, 4) if isinstance(value, float) else value for name, value in verdict.values.items()
    }
    return dg.AssetCheckResult(
        check_name=verdict.check,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity[verdict.severity.value],
        description=verdict.told,
        metadata={"video": video_id, **values},
    )
