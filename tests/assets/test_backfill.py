"""Runs over several partitions, as a backfill has them: one model, each video's fate its own, on and on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from batch_gpu.compute import compute_class
from capstone_dagster.analysis import analyze_video
from capstone_dagster.assets.declared.partitions import VIDEOS_PER_RUN
from capstone_dagster.assets.steps import detection, one_video
from capstone_dagster.assets.steps.detection import AnalysisOrder
from capstone_dagster.assets.steps.references import DetectionsReference
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.errors import StorageUnavailable
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.testing import SquareDetector, square_clip
from tests.assets import recovery_job
from tests.assets.conftest import Pipeline, failure_of
from tests.storage.samples import notices

ASSETS = ("extracted_frames", "detections", "events")
_RANGE = "dagster/asset_partition_range_"


# What is of interest here is the same with either emulator.
pytestmark = pytest.mark.parametrize("aws_endpoint", ["ministack"], indirect=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds with one person."""
    path = tmp_path_factory.mktemp("squares") / "clip.mp4"
    return square_clip(path, range(0, 2000, 40), lambda frame: [("person", 20 + frame, 20, 60 + frame, 100)])


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that were loaded, one after the other; each finds squares."""
    loaded: list[Path] = []

    def counting(model: Path, *arguments: Any, expected_sha256: str, **options: Any) -> SquareDetector:
        loaded.append(model)
        return SquareDetector(sha256=expected_sha256)

    monkeypatch.setattr(detection, "load_detector", counting)
    monkeypatch.setattr(detection, "_loaded", None)
    return loaded


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were passed over."""
    made: list[str] = []
    real = analyze_video

    def counting(video: Path, *arguments: Any, **options: Any) -> Any:
        made.append(video.name)
        return real(video, *arguments, **options)

    monkeypatch.setattr(detection, "analyze_video", counting)
    return made


def backfill(
    pipeline: Pipeline,
    first: VideoUpload,
    last: VideoUpload,
    *assets: str,
    tags: Mapping[str, str] = {},
    config: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """The run that a backfill's daemon makes of a stretch of partitions."""
    recovery_job.services.append(pipeline.services)
    return recovery_job.recoverable_job().execute_in_process(
        asset_selection=[dg.AssetKey(asset) for asset in assets or ASSETS],
        run_config=dict(config or {}),
        tags={f"{_RANGE}start": first.video_id, f"{_RANGE}end": last.video_id, **tags},
        instance=pipeline.instance,
        raise_on_error=False,
    )


def uploads(pipeline: Pipeline, clip: Path, *names: str) -> list[VideoUpload]:
    """Of bytes of their own each; what is called bad is no video."""
    bodies = {
        name: b"no video" if name == "bad" else clip.read_bytes() + b"\0" * number
        for number, name in enumerate(names)
    }
    return [pipeline.upload(f"gate/{name}.mp4", body) for name, body in bodies.items()]


def materialized(pipeline: Pipeline, run_id: str) -> dict[str, list[str | None]]:
    """Asset → the partitions that a run has materialised, one by one."""
    found: dict[str, list[str | None]] = {}
    of_type = dg.DagsterEventType.ASSET_MATERIALIZATION
    for record in pipeline.instance.get_records_for_run(run_id, of_type=of_type).records:
        made = record.event_log_entry.asset_materialization
        assert made is not None
        found.setdefault(made.asset_key.to_user_string(), []).append(made.partition)
    return found


def state(pipeline: Pipeline, upload: VideoUpload) -> tuple[str, str | None]:
    row = pipeline.status(upload)
    return row["state"], row["failure_class"]


def test_a_backfill_run_loads_one_model_and_its_bad_video_fails_alone(
    pipeline: Pipeline, clip: Path, loads: list[Path], passes: list[str]
) -> None:
    one, bad, other = uploads(pipeline, clip, "one", "bad", "other")

    result = backfill(pipeline, one, other)

    assert not result.success
    assert f"1 of 3 videos could not be analysed: {bad.video_id} (undecodable-video)" in failure_of(result)
    good = [one.video_id, other.video_id]
    assert materialized(pipeline, result.run_id) == dict.fromkeys(ASSETS, good)
    assert len(loads) == 1
    assert [state(pipeline, each) for each in (one, bad, other)] == [
        ("done", None),
        ("failed", "undecodable-video"),
        ("done", None),
    ]
    run = pipeline.instance.get_run_by_id(result.run_id)
    # It belongs to no upload alone, and would otherwise be taken for that one's.
    assert run is not None
    assert run.tags["capstone/failure"] == "undecodable-video"
    assert ".dagster/capstone.upload_id" not in run.tags

    # Somebody repairs the video; the same stretch once more passes over nothing that is finished.
    del passes[:]
    pipeline.upload("gate/bad.mp4", clip.read_bytes() + b"mended")
    again = backfill(pipeline, one, other)

    assert again.success
    assert len(passes) == 1
    everything = [one.video_id, bad.video_id, other.video_id]
    assert materialized(pipeline, again.run_id) == dict.fromkeys(ASSETS, everything)
    assert all(
        len(pipeline.services.database.transact(analyses_of, each.video_id)) == 1
        for each in (one, bad, other)
    )
    skipped = {event.step_key for event in again.all_events if event.is_step_skipped}
    assert {"events.derive_events", "events.persist_events"} <= skipped


def test_a_backfill_of_events_alone_works_on_the_cpu_and_looks_at_no_pixel(
    pipeline: Pipeline, clip: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, never, other = uploads(pipeline, clip, "one", "bad", "other")
    assert not backfill(pipeline, one, other).success
    del passes[:]
    monkeypatch.setattr(detection, "load_detector", None)

    result = backfill(pipeline, one, other, "events")

    assert not result.success  # of one there are no detections
    assert f"1 of 3 videos could not be analysed: {never.video_id} (analysis-missing)" in failure_of(result)
    assert passes == []
    assert materialized(pipeline, result.run_id) == {"events": [one.video_id, other.video_id]}
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert run is not None
    plan = pipeline.instance.get_execution_plan_snapshot(str(run.execution_plan_snapshot_id))
    steps = {step.key: step.tags or {} for step in plan.steps}
    assert compute_class(steps, run.step_keys_to_execute, run.tags) == "cpu"
    assert "events.derive_events" in steps
    assert not any(step.pool == "gpu" for step in plan.steps)


def test_a_backfill_of_detections_alone_publishes_nothing(pipeline: Pipeline, clip: Path) -> None:
    one, other = uploads(pipeline, clip, "one", "other")

    result = backfill(pipeline, one, other, "extracted_frames", "detections")

    assert result.success
    both = [one.video_id, other.video_id]
    assert materialized(pipeline, result.run_id) == dict.fromkeys(("extracted_frames", "detections"), both)
    assert pipeline.services.database.transact(analyses_of, one.video_id) == []


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"tags": {"capstone/force": "true"}}, id="tag"),
        pytest.param(
            {"config": {"ops": {"video_analysis": {"ops": {"analyze_video": {"config": {"force": True}}}}}}},
            id="configuration",
        ),
    ],
)
def test_a_forced_backfill_does_finished_work_again_and_keeps_what_was(
    pipeline: Pipeline, clip: Path, passes: list[str], asked: Mapping[str, Any]
) -> None:
    one, other = uploads(pipeline, clip, "one", "other")
    assert backfill(pipeline, one, other).success
    assert len(passes) == 2

    assert backfill(pipeline, one, other, **asked).success

    assert len(passes) == 4
    for upload in (one, other):
        analyses = pipeline.services.database.transact(analyses_of, upload.video_id)
        assert [analysis["is_current"] for analysis in analyses] == [False, True]


def s3_silent_for(upload: VideoUpload) -> Callable[..., DetectionsReference]:
    """The pass, but for one upload."""
    real: Callable[..., DetectionsReference] = detection.detect

    def detect(order: AnalysisOrder, *arguments: Any, **options: Any) -> DetectionsReference:
        if order.upload == upload:
            raise StorageUnavailable("S3 does not answer.")
        return real(order, *arguments, **options)

    return detect


def test_an_interrupted_backfill_goes_on_with_what_is_left(
    pipeline: Pipeline, clip: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = uploads(pipeline, clip, "one", "two", "three")
    forced = {"capstone/force": "true"}
    with monkeypatch.context() as broken:
        broken.setattr(one_video, "detect", s3_silent_for(two))
        # Each try would wait for some seconds.
        broken.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)
        stopped = backfill(pipeline, one, three, tags=forced)

    assert not stopped.success
    # What would fail every video fails none for good; the tries within the run did not repeat the first one.
    assert materialized(pipeline, stopped.run_id) == {asset: [one.video_id] for asset in ASSETS}
    assert state(pipeline, three) == ("received", None)
    assert len(passes) == 1

    root = stopped.run_id
    lineage = {"dagster/is_resume_retry": "true", "dagster/parent_run_id": root, "dagster/root_run_id": root}
    resumed = backfill(pipeline, one, three, tags={**forced, **lineage})

    assert resumed.success
    assert materialized(pipeline, resumed.run_id) == {
        asset: [two.video_id, three.video_id] for asset in ASSETS
    }
    assert len(passes) == 3
    assert {state(pipeline, each) for each in (one, two, three)} == {("done", None)}


def test_a_later_try_of_a_backfills_run_leaves_out_what_failed_for_good(
    pipeline: Pipeline, clip: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, bad, three = uploads(pipeline, clip, "one", "bad", "three")
    with monkeypatch.context() as broken:
        broken.setattr(one_video, "detect", s3_silent_for(three))
        broken.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)
        stopped = backfill(pipeline, one, three)
    before = notices(pipeline.services.database)
    # Once, although the step was tried three times.
    assert before.count("video.failed") == 2
    lineage = {
        "dagster/is_resume_retry": "true",
        "dagster/parent_run_id": stopped.run_id,
        "dagster/root_run_id": stopped.run_id,
    }

    by_the_system = backfill(
        pipeline, one, three, tags={**lineage, ".dagster/capstone.reexecution_of": stopped.run_id}
    )

    # Dagster counts a partition as failed only where a run failed.
    assert not by_the_system.success
    assert f"1 of 3 videos could not be analysed: {bad.video_id} (undecodable-video)" in failure_of(
        by_the_system
    )
    assert materialized(pipeline, by_the_system.run_id) == {asset: [three.video_id] for asset in ASSETS}
    assert notices(pipeline.services.database)[len(before) :] == ["video.analyzed"]

    # Somebody who starts it again may have mended it.
    somebody = backfill(pipeline, one, three, tags={**lineage, "dagster/parent_run_id": by_the_system.run_id})
    assert not somebody.success
    assert notices(pipeline.services.database)[len(before) + 1 :] == ["video.failed"]


def test_all_assets_of_a_backfill_go_into_the_same_runs(aws_endpoint: str) -> None:
    graph = recovery_job.recoverable_job().asset_layer.asset_graph
    policies = {graph.get(dg.AssetKey(asset)).backfill_policy for asset in ASSETS}
    assert policies == {dg.BackfillPolicy.multi_run(VIDEOS_PER_RUN)}
