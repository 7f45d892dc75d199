"""Judging a video's stored results: what the check rules find, and how Dagster records it.

The facts come from stored files and the event store, never from pixels. Nothing here raises because a fact
cannot be had: the finding says so instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import dagster as dg
import pyarrow as pa

from capstone_dagster.analysis import look_at_sheet, model_sha256, read_detections, read_events, read_frames
from capstone_dagster.assets.steps import check_rules
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.check_facts import DetectionFacts, FrameFacts
from capstone_dagster.assets.steps.check_rules import BLOCKING, Finding, Severity
from capstone_dagster.assets.steps.references import DetectionsReference, PublishedAnalysis, Reference
from capstone_dagster.assets.steps.temporary_files import read_object
from capstone_dagster.dagster_private import AssetCheckEvaluationTargetMaterializationData
from capstone_dagster.failures.classes import sentence
from capstone_dagster.model_files import EMBEDDED_MODEL
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.analysis_statistics import AnalysisFigures, camera_history
from capstone_dagster.storage.errors import ObjectNotFound, StorageError
from capstone_dagster.storage.events import events_of

# How many of a camera's latest videos say what is usual; one query reads them.
_HISTORY = 200


class ContradictoryDetections(Exception):
    """Detections contradict themselves or the settings: no events are made of them."""

    failure_class = "internal"


def judge_detections(detections: DetectionsReference, services: Services) -> list[Finding]:
    """What the checks of `detections` find in one video; never raises."""
    summary, settings = detections.summary, detections.settings

    @cache
    def frames() -> FrameFacts:
        return FrameFacts.of(read_object(services.objects, detections.prefix + "frames.parquet", read_frames))

    def stored() -> list[Finding]:
        found = DetectionFacts.of(
            read_object(services.objects, detections.prefix + "detections.parquet", read_detections),
            width=summary.width,
            height=summary.height,
            min_score=settings["min_score"],
        )
        return [
            check_rules.frames_complete(frames(), summary),
            check_rules.boxes_inside_frame(found, summary),
            check_rules.scores_in_range(found, settings["min_score"]),
            check_rules.tracks_lasting(found),
        ]

    def model() -> list[Finding]:
        name, sha256 = _expected_model(detections, services)
        requested = detections.requested_model is not None
        return [check_rules.configured_model(summary, name=name, sha256=sha256, requested=requested)]

    def picture() -> list[Finding]:
        seen = look_at_sheet(
            services.objects.get_bytes(detections.prefix + "contact_sheet.jpg"),
            width=summary.width,
            height=summary.height,
            frames=summary.frames_analyzed,
        )
        return [check_rules.picture_visible(seen, frames().still, summary.duration_ms)]

    return [
        *_judged(
            ("frames_complete", "boxes_inside_frame", "scores_in_range", "tracks_lasting"),
            stored,
            # A store that does not answer says nothing about the results; these do.
            damage=(ObjectNotFound, pa.ArrowInvalid, ValueError),
        ),
        *_judged(("configured_model",), model),
        *_judged(("picture_visible",), picture),
        *_judged(("expected_device",), lambda: [check_rules.expected_device(summary)]),
    ]


def judge_events(published: PublishedAnalysis, services: Services) -> list[Finding]:
    """What the checks of `events` find in one video; never raises."""
    analysis_id = published.analysis_id

    def stored() -> list[Finding]:
        rows = services.database.transact(events_of, analysis_id)
        derived = read_object(services.objects, f"analyses/{analysis_id}/events.parquet", read_events)
        return [check_rules.events_stored(rows, derived), check_rules.events_apart(rows)]

    @cache
    def figures() -> tuple[AnalysisFigures, list[AnalysisFigures]]:
        this, others = services.database.transact(camera_history, analysis_id, limit=_HISTORY)
        if this is None:
            raise LookupError(f"analysis {analysis_id} was deleted meanwhile")
        return this, others

    def history() -> list[Finding]:
        this, others = figures()
        return [check_rules.usual_detection_rate(this, others), check_rules.usual_confidence(this, others)]

    def latency() -> list[Finding]:
        analyses = services.database.transact(analyses_of, published.video_id)
        [this] = [row for row in analyses if row["analysis_id"] == analysis_id]
        first = next(row for row in analyses if row["upload_id"] == this["upload_id"])
        settings, video_s = services.settings, (figures()[0].duration_ms or 0) / 1000
        return [
            check_rules.expected_latency(
                (this["published_at"] - this["uploaded_at"]).total_seconds(),
                limit_s=max(60 * settings.run_limit_minutes, settings.run_limit_per_video * video_s),
                first=first["analysis_id"] == analysis_id,
            )
        ]

    return [
        *_judged(("events_stored", "events_apart"), stored, damage=(ObjectNotFound, pa.ArrowInvalid)),
        *_judged(("usual_detection_rate", "usual_confidence"), history),
        *_judged(("expected_latency",), latency),
    ]


def judge(reference: Reference, services: Services) -> list[Finding]:
    """What the checks of an asset that has checks find in one video; never raises."""
    if isinstance(reference, DetectionsReference):
        return judge_detections(reference, services)
    assert isinstance(reference, PublishedAnalysis), reference
    return judge_events(reference, services)


def judge_each(
    references: Mapping[str, Reference], services: Services
) -> Iterator[tuple[str, list[Finding] | None]]:
    """(video id, findings) of many videos, one after the other; None where there is nothing to judge.

    Args:
        references: the asset's, by partition; a missing one raises a `StorageError` when it is asked for.
    """
    for video_id in references:
        try:
            reference = references[video_id]
        except StorageError:
            yield video_id, None
        else:
            yield video_id, judge(reference, services)


def contradiction(findings: Sequence[Finding]) -> ContradictoryDetections | None:
    """Why no events may be made of what was judged; None if they may."""
    wrong = [
        f"{each.check}: {each.reason}" for each in findings if each.contradicts and each.check in BLOCKING
    ]
    if not wrong:
        return None
    return ContradictoryDetections(f"No events are made of these detections. {' '.join(wrong)}")


def log_findings(log: AnalysisLog, findings: Sequence[Finding]) -> None:
    """Write one line for each check that failed."""
    for each in findings:
        if not each.passed:
            log.write(
                f"Check {each.check}: {each.reason}",
                action="check.failed",
                level=logging.ERROR if each.contradicts else logging.WARNING,
                check=each.check,
                severity=each.severity.value,
            )


def evaluations(
    instance: dg.DagsterInstance, asset: str, video_id: str, findings: Sequence[Finding]
) -> Iterator[dg.AssetCheckEvaluation]:
    """Findings as Dagster records them, each with the materialisation that was judged.

    Not as check results: of each of those Dagster looks the materialisation up anew, and of a range of
    partitions it does not say which one was judged.
    """
    target = _latest_materialization(instance, asset, video_id)
    for each in findings:
        values = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in each.values.items()
        }
        yield dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset),
            check_name=each.check,
            passed=each.passed,
            severity=dg.AssetCheckSeverity[each.severity.value],
            description=each.reason,
            metadata={"video": video_id, **values},
            blocking=each.check in BLOCKING,
            target_materialization_data=target,
            partition=video_id,
        )


def _latest_materialization(
    instance: dg.DagsterInstance, asset: str, video_id: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[video_id])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
    return None


def _judged(
    checks: Sequence[str],
    judge: Callable[[], list[Finding]],
    *,
    damage: tuple[type[Exception], ...] = (),
) -> list[Finding]:
    """The findings; where they cannot be had, a warning, or an error if the stored results are damaged."""
    try:
        return judge()
    except damage as error:
        reason = f"What was stored cannot be read: {sentence(error)} Analyse the video again with `force`."
        return [
            Finding(check, False, Severity.WARN if check == "tracks_lasting" else Severity.ERROR, reason)
            for check in checks
        ]
    except Exception as error:  # law: what only observes fails no run
        reason = f"Could not be judged: {sentence(error)} Materialise the asset again."
        return [Finding(check, False, Severity.WARN, reason) for check in checks]


def _expected_model(detections: DetectionsReference, services: Services) -> tuple[str, str | None]:
    """The model that was to be used: its name, and its SHA-256 where nothing has to be fetched for it."""
    model = detections.requested_model or services.settings.model
    path = services.model_path(model) if model == EMBEDDED_MODEL else Path(model).expanduser()
    name = PurePosixPath(model).name if model.startswith("s3://") else path.name
    if detections.requested_model is None and services.settings.model_sha256 is not None:
        return name, services.settings.model_sha256
    return name, model_sha256(path) if path.exists() else None
