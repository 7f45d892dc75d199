"""Asset checks: what breaks a result is said by the check it breaks, in the run, and stops what follows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from pydantic import TypeAdapter

from capstone_dagster.analysis import DETECTIONS_SCHEMA, FRAMES_SCHEMA
from capstone_dagster.assets.declared.checks import detections_checks, events_checks
from capstone_dagster.assets.steps.judging import judge_detections, judge_events
from capstone_dagster.assets.steps.references import DetectionsReference, PublishedAnalysis
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageUnavailable
from capstone_dagster.storage.events import current_events, events_of
from capstone_dagster.storage.video_status import current_status
from tests.assets.conftest import Pipeline

OF_DETECTIONS = {
    "frames_complete",
    "boxes_inside_frame",
    "scores_in_range",
    "configured_model",
    "picture_visible",
    "expected_device",
    "tracks_lasting",
}
OF_EVENTS = {
    "events_stored",
    "events_apart",
    "usual_detection_rate",
    "usual_confidence",
    "expected_latency",
}


def said(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {each.check_name: each for each in result.get_asset_check_evaluations()}


def failed(result: dg.ExecuteInProcessResult) -> set[str]:
    return {name for name, each in said(result).items() if not each.passed}


def test_checks_judge_every_run_and_pass_for_a_good_video(pipeline: Pipeline, clip: Path) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())

    result = pipeline.run(upload)

    assert result.success
    assert set(said(result)) == OF_DETECTIONS | OF_EVENTS
    assert failed(result) == set(), [each.description for each in said(result).values() if not each.passed]
    for each in said(result).values():
        assert each.partition == upload.video_id
        assert each.description
        assert each.metadata["video"].value == upload.video_id
    assert said(result)["boxes_inside_frame"].blocking
    assert not said(result)["picture_visible"].blocking


def latest(pipeline: Pipeline, asset: str, kind: type, video_id: str) -> Any:
    stored = json.loads(pipeline.services.objects.get_bytes(f"references/assets/{asset}/{video_id}.json"))
    return TypeAdapter(kind).validate_python(stored["value"], strict=False)


def spoil(pipeline: Pipeline, key: str, schema: pa.Schema, column: str, value: float, folder: Path) -> None:
    """Overwrite the first value of a column of a stored table."""
    path = folder / "table.parquet"
    pipeline.services.objects.get_file(key, path)
    table = pq.read_table(path)
    changed = pa.array([value, *table[column].to_pylist()[1:]], schema.field(column).type)
    pq.write_table(table.set_column(schema.get_field_index(column), schema.field(column), changed), path)
    pipeline.services.objects.put_file(key, path)


def test_checks_keep_events_from_contradictory_detections(
    pipeline: Pipeline, clip: Path, tmp_path: Path
) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    assert pipeline.run(upload).success
    published = pipeline.services.database.transact(current_events, upload.video_id)
    done = latest(pipeline, "detections", DetectionsReference, upload.video_id)
    spoil(pipeline, done.prefix + "detections.parquet", DETECTIONS_SCHEMA, "x2", 1e6, tmp_path)

    # The same upload, asked for once more: what is stored is found, and is no longer what it was.
    result = pipeline.run(upload)

    assert not result.success
    assert failed(result) == {"boxes_inside_frame"}
    assert said(result)["boxes_inside_frame"].severity == dg.AssetCheckSeverity.ERROR
    assert "1 boxes are empty or outside" in str(said(result)["boxes_inside_frame"].description)
    assert {event.step_key for event in result.all_events if event.is_step_start} == {
        "video_analysis.analyze_video",
        "detections_checks",
    }
    [run] = pipeline.instance.get_runs(dg.RunsFilter(run_ids=[result.run_id]))
    assert run.tags["capstone/failure"] == "internal"
    [status] = pipeline.services.database.transact(current_status, upload.video_id)
    assert status["state"] == "failed"
    assert "boxes_inside_frame" in status["message"]
    # What consumers see is what was right before.
    assert pipeline.services.database.transact(current_events, upload.video_id) == published


def test_each_check_sees_what_it_is_there_for(pipeline: Pipeline, clip: Path, tmp_path: Path) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    assert pipeline.run(upload).success
    done = latest(pipeline, "detections", DetectionsReference, upload.video_id)
    published = latest(pipeline, "events", PublishedAnalysis, upload.video_id)
    services, store = pipeline.services, pipeline.services.database

    def configured(**changed: Any) -> Services:
        return Services(services.settings.model_copy(update=changed))

    def wrong(reference: DetectionsReference = done, using: Services = services) -> dict[str, str]:
        judged = judge_detections(reference, using)
        return {each.check: each.severity.value for each in judged if not each.passed}

    def wrong_events(using: Services = services) -> dict[str, str]:
        return {each.check: each.reason for each in judge_events(published, using) if not each.passed}

    assert wrong() == {}
    assert wrong_events() == {}
    assert wrong(using=configured(model_sha256="0" * 64)) == {"configured_model": "ERROR"}
    assert wrong(replace(done, requested_model="yolov8x.pt")) == {"configured_model": "WARN"}
    fallback = replace(done.summary, cpu_fallback="the GPU did not answer")
    assert wrong(replace(done, summary=fallback)) == {"expected_device": "WARN"}
    assert wrong(replace(done, settings={**done.settings, "min_score": 0.99})) == {"scores_in_range": "ERROR"}
    # What cannot be looked at is no verdict on the video.
    away = configured(derived_url="file:///proc/nowhere")
    away.__dict__["objects"] = _Away()
    assert set(wrong(using=away).values()) == {"WARN"}
    assert "picture_visible" in wrong(using=away)
    spoil(pipeline, done.prefix + "frames.parquet", FRAMES_SCHEMA, "pts_ms", 10**9, tmp_path)
    assert wrong()["frames_complete"] == "ERROR"
    services.objects.put_bytes(done.prefix + "detections.parquet", b"no table")
    assert wrong()["boxes_inside_frame"] == "ERROR"

    assert set(wrong_events(configured(run_limit_minutes=1e-6, run_limit_per_video=1e-6))) == {
        "expected_latency"
    }
    with store.engine.begin() as connection:
        one = store.transact(events_of, published.analysis_id)[0]
        connection.execute(
            sa.text(
                "CREATE TEMP TABLE twin ON COMMIT DROP AS "
                "SELECT * FROM capstone.events WHERE event_id = :event_id"
            ),
            one,
        )
        connection.execute(sa.text("UPDATE twin SET event_id = 'twin'"))
        connection.execute(sa.text("INSERT INTO capstone.events SELECT * FROM twin"))
    findings = wrong_events()
    assert set(findings) == {"events_stored", "events_apart"}
    assert "1 were never derived (twin)" in findings["events_stored"]
    away.__dict__["events"] = store
    assert "Could not be judged" in wrong_events(away)["events_stored"]


class _Away:
    """An object store that does not answer."""

    def __getattr__(self, name: str) -> Any:
        raise StorageUnavailable("S3 does not answer.")


def test_no_check_can_be_executed_without_its_partition() -> None:
    # Dagster's page offers it where it is possible, and starts a run that has none.
    for checks in (detections_checks, events_checks):
        assert not checks.can_subset
        assert len(list(checks.check_specs)) > 1
