"""Many videos in one run: one model, and each video's fate its own."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import PartitionBackfill

from capstone_dagster.assets import failing
from capstone_dagster.assets.declared.jobs import analyze_videos
from capstone_dagster.assets.declared.videos import events, raw_videos, video_analysis
from capstone_dagster.assets.steps import detection
from capstone_dagster.assets.steps.one_video import requested_at
from capstone_dagster.assets.steps.references import ReferenceIOManager
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.verdicts import Cause, Outcome, outcome_of
from capstone_dagster.services import Services
from capstone_dagster.storage.erasures import begin_erasure
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.events import current_events
from tests.assets.conftest import Pipeline, failure_of

ASSETS = ("extracted_frames", "detections", "events")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that were loaded, one after the other."""
    loaded: list[Path] = []
    real = detection.load_detector

    def counting(model: Path, *arguments: Any, **options: Any) -> Any:
        loaded.append(model)
        return real(model, *arguments, **options)

    monkeypatch.setattr(detection, "load_detector", counting)
    monkeypatch.setattr(detection, "_loaded", None)
    return loaded


def run(pipeline: Pipeline, *videos: str, services: Services | None = None) -> dg.ExecuteInProcessResult:
    return analyze_videos.execute_in_process(
        run_config={"ops": {"analyze_each": {"config": {"videos": list(videos)}}}},
        resources={"services": services or pipeline.services},
        instance=pipeline.instance,
        raise_on_error=False,
    )


def materialized(pipeline: Pipeline) -> dict[str, set[str]]:
    return {asset: pipeline.instance.get_materialized_partitions(dg.AssetKey(asset)) for asset in ASSETS}


def checked(pipeline: Pipeline, run_id: str) -> set[tuple[str, str | None]]:
    """The checks that passed in a run, each with its video."""
    of_type = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    found = [
        record.event_log_entry.asset_check_evaluation
        for record in pipeline.instance.get_records_for_run(run_id, of_type=of_type).records
    ]
    return {(each.check_name, each.partition) for each in found if each is not None and each.passed}


def test_a_bad_video_does_not_fail_its_neighbours(pipeline: Pipeline, clip: Path, loads: list[Path]) -> None:
    body = clip.read_bytes()
    first, bad, last = (
        pipeline.upload("a/first.mp4", body),
        pipeline.upload("a/bad.mp4", b"no video"),
        pipeline.upload("a/last.mp4", body + b"\0"),  # other bytes: work of its own
    )
    asked = (first.video_id, bad.video_id, "never-uploaded-00000000", last.video_id, first.video_id)
    result = run(pipeline, *asked)

    assert not result.success
    message = failure_of(result)
    assert f"2 of 4 videos could not be analysed: {bad.video_id} (undecodable-video)" in message
    assert "never-uploaded-00000000 (source-missing)" in message
    record = pipeline.instance.get_run_record_by_id(result.run_id)
    assert record is not None
    # The notice names the videos, not a defect.
    expected = Outcome.FAILED, Cause(FailureClass.SOURCE_MISSING, message)
    assert outcome_of(pipeline.instance, record) == expected
    assert len(loads) == 1
    good = {first.video_id, last.video_id}
    # Each is judged as in a run of its own.
    assert checked(pipeline, result.run_id) >= {
        (check, video) for check in ("boxes_inside_frame", "events_stored") for video in good
    }
    assert materialized(pipeline) == dict.fromkeys(ASSETS, good)
    seen = pipeline.instance.fetch_observations(dg.AssetKey("raw_videos"), limit=5).records
    assert {record.partition_key for record in seen} == good
    for upload in (first, last):
        assert pipeline.status(upload)["state"] == "done"
        assert pipeline.services.database.transact(current_events, upload.video_id)
    status = pipeline.status(bad)
    assert (status["state"], status["failure_class"]) == ("failed", "undecodable-video")


def test_what_it_made_serves_a_run_that_derives_events_alone(pipeline: Pipeline, clip: Path) -> None:
    upload = pipeline.upload("a/clip.mp4", clip.read_bytes())
    assert run(pipeline, upload.video_id).success
    again = run(pipeline, upload.video_id)

    assert again.success
    records = pipeline.instance.get_records_for_run(again.run_id).records
    (detections,) = [
        event.asset_materialization
        for record in records
        if (event := record.event_log_entry).asset_materialization is not None
        and event.asset_materialization.asset_key == dg.AssetKey("detections")
    ]
    assert detections.metadata["reused"].value is True

    # As from the UI: one asset of one partition, from what was made above.
    alone = dg.materialize(
        [raw_videos, video_analysis, events],
        selection=dg.AssetSelection.assets("events"),
        partition_key=upload.video_id,
        instance=pipeline.instance,
        resources={
            "services": pipeline.services,
            "io_manager": ReferenceIOManager(pipeline.services.objects),
        },
    )
    assert alone.success


def test_what_would_fail_every_video_ends_the_run_at_once(
    pipeline: Pipeline, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(StorageError):
        failure_class = "storage-unavailable"

    tried: list[str] = []

    def away(order: detection.AnalysisOrder, *arguments: Any, **options: Any) -> Any:
        tried.append(order.upload.video_id)
        raise Away("S3 does not answer.")

    monkeypatch.setattr("capstone_dagster.assets.steps.one_video.detect", away)
    monkeypatch.setattr(failing, "RETRY", dg.RetryPolicy(max_retries=1, delay=0))
    videos = [pipeline.upload(f"a/{name}.mp4", clip.read_bytes()).video_id for name in ("one", "two")]
    result = run(pipeline, *videos)

    assert not result.success
    # It passes, maybe, and is tried once more; the next video is not.
    assert tried == [videos[0], videos[0]]
    run_record = pipeline.instance.get_run_by_id(result.run_id)
    assert run_record is not None
    assert run_record.tags["capstone/failure"] == "storage-unavailable"


def test_a_video_that_is_being_deleted_does_not_fail_its_neighbours(pipeline: Pipeline, clip: Path) -> None:
    """As after a deletion that was broken off, until somebody finishes it."""
    body = clip.read_bytes()
    going, other = pipeline.upload("a/going.mp4", body), pipeline.upload("a/other.mp4", body)
    pipeline.services.database.transact(begin_erasure, going.video_id, "hana")

    result = run(pipeline, going.video_id, other.video_id)

    assert not result.success
    assert pipeline.services.database.transact(current_events, other.video_id)
    assert f"capstone delete {going.video_id}" in pipeline.status(going)["message"]


def test_what_a_backfill_makes_was_asked_for_when_the_backfill_was() -> None:
    asked = datetime(2026, 1, 2, 12, tzinfo=UTC)
    graph = dg.Definitions(
        assets=[raw_videos, video_analysis, events],
        resources={"services": dg.ResourceDefinition.none_resource()},
    ).resolve_asset_graph()
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("videos", ["v1"])
        backfill = PartitionBackfill.from_asset_partitions(
            backfill_id="b",
            asset_graph=graph,
            partition_names=["v1"],
            asset_selection=[dg.AssetKey("events")],
            backfill_timestamp=asked.timestamp(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
        instance.add_backfill(backfill)

        def made(parent: str | None = None) -> datetime:
            made_by = instance.add_run(
                dg.DagsterRun(
                    job_name="j", tags={"dagster/backfill": "b"}, parent_run_id=parent, root_run_id=parent
                )
            )
            return requested_at(instance, made_by.run_id, made_by.tags)

        assert made() == asked
        # Somebody has that run executed again: that is an order of its own.
        assert made(parent=instance.get_runs()[0].run_id) > asked
