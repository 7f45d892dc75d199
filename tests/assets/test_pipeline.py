"""From an upload to published events, op by op, as Dagster executes them."""

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.analysis import EventRules, read_events
from capstone_dagster.assets.declared.videos import persist_events
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.detection import AnalysisOrder, detect
from capstone_dagster.assets.steps.duplicate_passes import Passes
from capstone_dagster.assets.steps.publication import IntegrityViolation, check_integrity, derive, publish
from capstone_dagster.assets.steps.references import DetectionsReference, EventsReference, ReferenceIOManager
from capstone_dagster.commands.following import follow
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.events import current_events
from capstone_dagster.submit import Submission
from tests.assets.conftest import Pipeline
from tests.assets.samples import SUMMARY


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    [materialization] = result.asset_materializations_for_node(
        {
            "extracted_frames": "video_analysis.analyze_video",
            "detections": "video_analysis.analyze_video",
        }.get(asset, f"{asset}.persist_events")
    )[-1:]
    return {name: value.value for name, value in materialization.metadata.items()}


def test_a_run_fetches_none_of_its_own_files(pipeline: Pipeline, clip: Path) -> None:
    upload = pipeline.upload("gate/20250526_193726.mp4", clip.read_bytes())
    fetched: list[str] = []

    def note(params: Any, **_: Any) -> None:
        fetched.append(params["Key"])

    pipeline.services.s3.meta.events.register("provide-client-params.s3.GetObject", note)
    assert pipeline.run(upload).success

    [analysis] = pipeline.services.database.transact(analyses_of, upload.video_id)
    assert analysis["events"] > 0
    # The video, and the question whether its detections exist already.
    assert sorted(fetched) == [f"detections/{analysis['detection_id']}/manifest.json", upload.key]


def test_an_upload_becomes_events_exactly_once(pipeline: Pipeline, clip: Path, tmp_path: Path) -> None:
    body = clip.read_bytes()
    upload = pipeline.upload("gate/20250526_193726.mp4", body)

    first = pipeline.run(upload)

    assert first.success
    published = pipeline.services.database.transact(current_events, upload.video_id)
    [analysis] = pipeline.services.database.transact(analyses_of, upload.video_id)
    assert analysis["events"] == len(published) > 0
    assert pipeline.status(upload)["state"] == "done"
    [seen] = pipeline.instance.fetch_observations(dg.AssetKey("raw_videos"), limit=5).records
    assert seen.partition_key == upload.video_id
    assert seen.asset_observation is not None
    shown = {name: value.value for name, value in seen.asset_observation.metadata.items()}
    assert shown["recorded_at"] == "2025-05-26 19:37:26+09:00"
    assert shown["recorded_at_known_from"] == "the file's name"
    assert shown["picture"].startswith("![gate/")
    objects = pipeline.services.objects
    prefix = f"detections/{analysis['detection_id']}/"
    names = {key.removeprefix(prefix) for key in objects.keys(prefix)}
    assert {"frames.parquet", "detections.parquet", "contact_sheet.jpg", "manifest.json"} <= names
    for event in published:
        assert objects.exists(event["thumbnail_key"])
        assert event["camera"] == "gate"
    # The name tells the wall clock: 19:37:26 in Seoul is 10:37:26 UTC.
    began = datetime(2025, 5, 26, 10, 37, 26, tzinfo=UTC).timestamp()
    assert published[0]["started_at"].timestamp() == pytest.approx(began + published[0]["start_ms"] / 1000)
    objects.get_file(f"analyses/{analysis['analysis_id']}/events.parquet", tmp_path / "events.parquet")
    assert {event.event_id for event in read_events(tmp_path / "events.parquet")} == {
        event["event_id"] for event in published
    }

    # The same bytes under the same key: another upload, another run, and nothing is added or inferred.
    again = pipeline.upload("gate/20250526_193726.mp4", body)
    second = pipeline.run(again)

    assert second.success
    assert again.upload_id != upload.upload_id
    assert metadata(second, "detections")["reused"] is True
    assert (
        pipeline.services.database.transact(analyses_of, upload.video_id)[0]["published_at"]
        == analysis["published_at"]
    )
    assert pipeline.services.database.transact(current_events, upload.video_id) == published

    # From the UI nothing is configured: the partition's latest upload is meant.
    third = pipeline.run(again, configured=False)
    assert third.success
    assert len(pipeline.services.database.transact(analyses_of, upload.video_id)) == 1


def test_who_waits_for_a_damaged_file_reads_that_it_is_damaged(
    pipeline: Pipeline, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = DEMO_CLIP.read_bytes()
    upload = pipeline.upload("gate/cut.mp4", body[: len(body) // 3])
    assert pipeline.run(upload).success
    submission = Submission(upload.url, upload.video_id, upload.upload_id)

    follow(pipeline.services.database, [submission], as_json=False)

    row = pipeline.status(upload)
    assert row["state"] == "done"
    assert row["message"].startswith("The video ends before its stated end")
    assert "upload a whole file." in " ".join(capfd.readouterr().err.split())
    whole = pipeline.upload("gate/whole.mp4", clip.read_bytes())
    assert pipeline.run(whole).success
    assert pipeline.status(whole)["message"] is None


def test_forced_work_is_done_again(pipeline: Pipeline, clip: Path) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())

    assert pipeline.run(upload).success
    forced = pipeline.run(upload, force=True)

    assert metadata(forced, "detections")["reused"] is False
    analyses = pipeline.services.database.transact(analyses_of, upload.video_id)
    assert [analysis["is_current"] for analysis in analyses] == [False, True]


def test_the_same_bytes_elsewhere_are_detected_once(pipeline: Pipeline, clip: Path) -> None:
    one = pipeline.upload("gate/a.mp4", clip.read_bytes())
    other = pipeline.upload("yard/b.mp4", clip.read_bytes())

    assert pipeline.run(one).success
    second = pipeline.run(other)

    assert metadata(second, "detections")["reused"] is True
    [analysis] = pipeline.services.database.transact(analyses_of, one.video_id)
    [another] = pipeline.services.database.transact(analyses_of, other.video_id)
    assert analysis["detection_id"] == another["detection_id"]
    assert analysis["analysis_id"] != another["analysis_id"]


@pytest.mark.parametrize(
    ("body", "deleted", "failure", "message"),
    [
        pytest.param(b"this is no video", False, "undecodable-video", "video", id="not-a-video"),
        pytest.param(b"", False, "undecodable-video", "", id="empty"),
        pytest.param(b"x", True, "source-missing", "does not exist", id="deleted-before-the-run"),
    ],
)
def test_a_bad_upload_fails_with_its_reason_and_leaves_nothing(
    pipeline: Pipeline, body: bytes, deleted: bool, failure: str, message: str
) -> None:
    upload = pipeline.upload("gate/bad.mp4", body)
    if deleted:
        pipeline.aws.client("s3").delete_object(
            Bucket="capstone-raw", Key="gate/bad.mp4", VersionId=upload.version_id
        )

    result = pipeline.run(upload)

    assert not result.success
    row = pipeline.status(upload)
    assert (row["state"], row["failure_class"]) == ("failed", failure)
    assert message in row["message"]
    [run] = pipeline.instance.get_runs()
    assert run.tags["capstone/failure"] == failure
    assert pipeline.services.database.transact(analyses_of, upload.video_id) == []
    assert [key for key in pipeline.services.objects.keys("") if key.startswith("detections/")] == []
    # A permanent failure is not tried again.
    retries = [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    assert retries == []
    [failed] = [event for event in result.all_events if event.is_step_failure]
    assert "What to do:" in str(failed.step_failure_data.user_failure_data.description)


def _published(pipeline: Pipeline, clip: Path) -> tuple[DetectionsReference, EventsReference]:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    log = AnalysisLog(logging.getLogger("test"), "r", upload)
    order = AnalysisOrder(upload)
    passes = Passes(pipeline.instance, "r", pipeline.services)
    detections = detect(order, pipeline.services, log=log, progress=lambda _: None, passes=passes)
    return detections, derive(detections, pipeline.services, EventRules(), log)


def test_a_database_outage_fails_the_last_op_only_and_it_can_be_repeated(
    pipeline: Pipeline, clip: Path
) -> None:
    _, derived = _published(pipeline, clip)
    settings = pipeline.services.settings.model_copy(
        update={"database_url": None, "postgres_host": "127.0.0.1", "postgres_port": 1}
    )
    cut_off = Services(settings.model_copy())

    with pytest.raises(dg.Failure) as caught:
        persist_events(dg.build_op_context(resources={"services": cut_off}), derived)
    assert caught.value.metadata["failure_class"].value == "database-unavailable"
    # Publishing itself has tried for ten seconds; the op does not hold its machine for more.
    assert not caught.value.allow_retries

    output = persist_events(dg.build_op_context(resources={"services": pipeline.services}), derived)
    assert output.value.current
    assert output.value.events == len(pipeline.services.database.transact(current_events)) == derived.events


def test_publishing_refuses_events_that_cannot_be_true(pipeline: Pipeline, clip: Path) -> None:
    detections, derived = _published(pipeline, clip)
    log = AnalysisLog(logging.getLogger("test"), "r", detections.upload)
    asked = {"run_id": "r", "requested_at": datetime.now(UTC), "began_at": time.time()}
    _, found = publish(derived, pipeline.services, **asked, log=log)  # type: ignore[arg-type]
    summary = detections.summary

    check_integrity(found, expected=len(found), summary=summary)
    for wrong, reason in (
        ({"expected": len(found) + 1}, "read back"),
        ({"summary": replace(summary, detections=1)}, "more detections"),
        ({"summary": replace(summary, last_pts_ms=1)}, "outside the video"),
    ):
        with pytest.raises(IntegrityViolation, match=reason):
            check_integrity(found, **{"expected": len(found), "summary": summary, **wrong})  # type: ignore[arg-type]
    with pytest.raises(IntegrityViolation, match="ids repeat"):
        check_integrity([found[0], found[0]], expected=2, summary=summary)


def test_references_are_those_of_the_run_that_made_them(pipeline: Pipeline) -> None:
    upload = pipeline.upload("gate/a.mp4", b"x")
    manager = ReferenceIOManager(pipeline.services.objects)
    key = dg.AssetKey("detections")

    def reference(identity: str) -> DetectionsReference:
        return DetectionsReference(identity, upload, f"detections/{identity}/", SUMMARY, {}, 1, False)

    def output(run_id: str | None) -> dg.OutputContext:
        return dg.build_output_context(
            step_key="video_analysis.analyze_video" if run_id else None,
            name="detections",
            run_id=run_id,
            asset_key=key,
            partition_key=upload.video_id,
        )

    manager.handle_output(output("run-1"), reference("one"))
    manager.handle_output(output("run-2"), reference("two"))

    def load(upstream: dg.OutputContext | None) -> object:
        return manager.load_input(
            dg.build_input_context(upstream_output=upstream, asset_key=key, partition_key=upload.video_id)
        )

    assert load(output("run-1")) == reference("one")
    assert load(output("run-2")) == reference("two")
    assert load(output(None)) == reference("two")
    with pytest.raises(TypeError, match="DetectionsReference"):
        manager.handle_output(output("run-1"), {"not": "a reference"})
