"""What happens after a failure, with Dagster's own instance on PostgreSQL: lineage, status, retries."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.assets.steps import one_video
from capstone_dagster.assets.steps.detection import detect
from capstone_dagster.run_tags import FAILURE_TAG
from capstone_dagster.runs.video_status import reconcile
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.video_status import mark_queued, mark_running
from tests.assets import recovery_job
from tests.assets.conftest import Pipeline
from tests.support.dagster_home import dagster_home

NOWHERE = {"database_url": None, "postgres_host": "127.0.0.1", "postgres_port": 1}
EVENTS_ONLY = [dg.AssetKey("events")]


@pytest.fixture
def cut_off(pipeline: Pipeline) -> Services:
    """Services whose event store does not answer, while objects and Dagster do."""
    return Services(pipeline.services.settings.model_copy(update=NOWHERE))


@pytest.fixture
def instance(pipeline: Pipeline, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with files behind it: re-execution does not work on one that is only in memory."""
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        pipeline.instance = instance
        yield instance


def execute(
    pipeline: Pipeline,
    upload: VideoUpload,
    services: Services,
    *,
    run_config: dict[str, Any] | None = None,
    repairs: str | None = None,
    only: list[dg.AssetKey] | None = None,
) -> dg.JobExecutionResult:
    """One run as a worker executes it; `repairs` re-executes that run from its failure."""
    recovery_job.services.append(services)
    options = dg.ReexecutionOptions.from_failure(repairs, pipeline.instance) if repairs else None
    return dg.execute_job(
        dg.reconstructable(recovery_job.recoverable_job),
        instance=pipeline.instance,
        run_config=run_config or {},
        tags={".dagster/capstone.upload_id": upload.upload_id, "dagster/partition": upload.video_id},
        reexecution_options=options,
        asset_selection=only,
    )


def steps(result: dg.JobExecutionResult) -> set[str]:
    return {str(event.step_key) for event in result.all_events if event.is_step_success}


def test_events_alone_come_from_the_stored_detections(
    pipeline: Pipeline, instance: dg.DagsterInstance, clip: Path
) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    config = pipeline.configured(upload)
    assert execute(pipeline, upload, pipeline.services, run_config=config).success
    published = pipeline.services.database.transact(current_events, upload.video_id)

    again = execute(pipeline, upload, pipeline.services, only=EVENTS_ONLY)

    assert again.success
    assert steps(again) == {"events.derive_events", "events.persist_events", "events_checks"}
    assert pipeline.services.database.transact(current_events, upload.video_id) == published


def test_events_alone_without_detections_fail_with_a_class(
    pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    upload = pipeline.upload("gate/a.mp4", b"x")

    result = execute(pipeline, upload, pipeline.services, only=EVENTS_ONLY)

    [failed] = [event for event in result.all_events if event.is_step_failure]
    data = failed.step_failure_data.user_failure_data
    assert data is not None
    assert data.metadata["failure_class"].value == "analysis-missing"


def test_re_execution_from_failure_reads_what_its_own_lineage_made(
    pipeline: Pipeline, instance: dg.DagsterInstance, clip: Path, cut_off: Services
) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    config = pipeline.configured(upload)
    first = execute(pipeline, upload, cut_off, run_config=config)
    assert not first.success
    # Meanwhile another run of the same video, sampling otherwise, goes all the way.
    other = pipeline.configured(upload, sample_fps=2.0)
    assert execute(pipeline, upload, pipeline.services, run_config=other).success

    again = execute(pipeline, upload, pipeline.services, run_config=config, repairs=first.run_id)

    assert again.success
    # The outage met the first step that asks the event store: for the zones of the camera.
    assert steps(again) == {"events.derive_events", "events.persist_events", "events_checks"}
    analyses = pipeline.services.database.transact(analyses_of, upload.video_id)
    by_run = {analysis["run_id"]: analysis for analysis in analyses}
    assert by_run[again.run_id]["settings"]["sample_fps"] == 1.0
    assert by_run[again.run_id]["is_current"]
    repaired = pipeline.instance.get_run_by_id(again.run_id)
    assert repaired is not None
    assert repaired.tags.get(FAILURE_TAG, "none") == "none"


def tick(pipeline: Pipeline, services: Services) -> None:
    reconcile(pipeline.instance, services)


def test_status_catches_up_with_a_run_that_failed_while_the_database_was_away(
    pipeline: Pipeline, cut_off: Services
) -> None:
    upload = pipeline.upload("gate/a.mp4", b"this is no video")
    failed = pipeline.run(upload, services=cut_off)
    assert not failed.success
    pipeline.services.database.transact(mark_queued, {upload.upload_id: failed.run_id})
    assert pipeline.status(upload)["state"] == "queued"

    # Ticks that fail themselves lose nothing.
    with pytest.raises(Exception, match="does not answer"):
        tick(pipeline, cut_off)
    tick(pipeline, pipeline.services)

    row = pipeline.status(upload)
    assert (row["state"], row["failure_class"]) == ("failed", "undecodable-video")


def lost_run(pipeline: Pipeline, upload: VideoUpload, **tags: str) -> str:
    recovery_job.services.append(pipeline.services)
    run = pipeline.instance.create_run_for_job(
        recovery_job.recoverable_job(),
        status=dg.DagsterRunStatus.STARTED,
        tags={".dagster/capstone.upload_id": upload.upload_id, **tags},
    )
    pipeline.services.database.transact(mark_running, upload.upload_id, run.run_id)
    return run.run_id


def test_a_lost_worker_is_told(pipeline: Pipeline) -> None:
    upload = pipeline.upload("gate/a.mp4", b"x")
    run_id = lost_run(pipeline, upload)
    tick(pipeline, pipeline.services)
    assert pipeline.status(upload)["state"] == "running"

    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    pipeline.instance.report_run_failed(run, "The machine is gone.")
    tick(pipeline, pipeline.services)

    row = pipeline.status(upload)
    assert (row["state"], row["failure_class"]) == ("failed", "worker-lost")
    ended = pipeline.instance.get_run_by_id(run_id)
    assert ended is not None
    assert ended.tags[FAILURE_TAG] == "worker-lost"


def test_a_worker_that_was_told_to_stop_is_told_with_the_reason(pipeline: Pipeline) -> None:
    """Its launcher's sensor looks it up some seconds after the run has failed."""
    upload = pipeline.upload("gate/a.mp4", b"x")
    interrupted = {"dagster/failure_reason": "UNEXPECTED_TERMINATION", "batch_gpu/job_id": "job-1"}
    run = launched(pipeline, dg.DagsterRunStatus.STARTED, interrupted)
    pipeline.services.database.transact(mark_running, upload.upload_id, run.run_id)
    pipeline.instance.report_run_failed(run)
    tick(pipeline, pipeline.services)
    assert pipeline.status(upload)["state"] == "running"

    pipeline.instance.add_run_tags(run.run_id, {"batch_gpu/failure": "timeout"})
    tick(pipeline, pipeline.services)

    row = pipeline.status(upload)
    assert (row["state"], row["failure_class"]) == ("failed", "timeout")


def test_a_worker_given_up_for_lost_does_not_speak_for_the_run_that_followed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = pipeline.upload("gate/a.mp4", b"this is no video")
    database = pipeline.services.database

    def given_up_meanwhile(*arguments: Any, **named: Any) -> Any:
        [run] = pipeline.instance.get_runs()
        pipeline.instance.report_run_failed(run, "The worker was lost.")
        database.transact(mark_running, upload.upload_id, "the-next-run")
        return detect(*arguments, **named)

    monkeypatch.setattr(one_video, "detect", given_up_meanwhile)
    pipeline.run(upload)

    row = pipeline.status(upload)
    assert (row["state"], row["run_id"]) == ("running", "the-next-run")


def launched(pipeline: Pipeline, status: dg.DagsterRunStatus, tags: dict[str, str]) -> dg.DagsterRun:
    """A run that a launcher has, and no worker yet."""
    recovery_job.services.append(pipeline.services)
    return pipeline.instance.create_run_for_job(recovery_job.recoverable_job(), status=status, tags=tags)


def test_a_run_that_fails_before_it_begins_has_failed(pipeline: Pipeline) -> None:
    upload = pipeline.upload("gate/a.mp4", b"x")
    cause = "No machine of that kind came within an hour."
    tags = {"batch_gpu/failure": "capacity", ".dagster/batch_gpu.cause": cause}
    run = launched(pipeline, dg.DagsterRunStatus.STARTING, tags)
    pipeline.services.database.transact(mark_queued, {upload.upload_id: run.run_id})

    pipeline.instance.report_run_failed(run, "Dagster's own words.")
    tick(pipeline, pipeline.services)

    row = pipeline.status(upload)
    assert (row["state"], row["failure_class"], row["message"]) == ("failed", "capacity", cause)


def test_waiting_for_a_machine_is_told_with_its_reason(pipeline: Pipeline) -> None:
    upload = pipeline.upload("gate/a.mp4", b"x")
    tags = {".dagster/batch_gpu.status": "RUNNABLE: no machine is free"}
    run = launched(pipeline, dg.DagsterRunStatus.STARTING, tags)
    pipeline.services.database.transact(mark_queued, {upload.upload_id: run.run_id})
    tick(pipeline, pipeline.services)
    row = pipeline.status(upload)
    expected = ("waiting-for-compute", "AWS Batch: RUNNABLE: no machine is free")
    assert (row["state"], row["message"]) == expected

    pipeline.services.database.transact(mark_running, upload.upload_id, run.run_id)
    tick(pipeline, pipeline.services)
    row = pipeline.status(upload)
    assert (row["state"], row["message"]) == ("running", None)


def test_a_cancelled_run_is_told(pipeline: Pipeline) -> None:
    upload = pipeline.upload("gate/a.mp4", b"x")
    run = pipeline.instance.get_run_by_id(lost_run(pipeline, upload))
    assert run is not None
    pipeline.instance.report_run_canceled(run)

    tick(pipeline, pipeline.services)

    assert pipeline.status(upload)["state"] == "cancelled"


def test_an_overwritten_upload_is_superseded_not_failed(pipeline: Pipeline) -> None:
    # A bucket without versions: the older upload cannot be had any more.
    s3 = pipeline.aws.client("s3")
    s3.put_bucket_versioning(Bucket="capstone-raw", VersioningConfiguration={"Status": "Suspended"})
    old = pipeline.upload("gate/a.mp4", b"old")
    s3.put_object(Bucket="capstone-raw", Key="gate/a.mp4", Body=b"newer")
    gone = replace(old, version_id=None)

    result = pipeline.run(gone)

    assert not result.success
    assert pipeline.status(old)["state"] == "superseded"
