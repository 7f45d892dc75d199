"""A failed partition's page says which class of failure it was, why, and what to do, until it is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.failures.classes import POLICIES, FailureClass
from capstone_dagster.runs.video_status import reconcile
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.video_status import mark_running
from tests.assets import recovery_job, test_backfill
from tests.assets.conftest import Pipeline

ASSETS = ("extracted_frames", "detections", "events")
clip, loads = test_backfill.clip, test_backfill.loads
pytestmark = pytest.mark.parametrize("aws_endpoint", ["ministack"], indirect=True)


class Forbidden(Exception):
    """What would meet the next video, too."""

    failure_class = "permission-denied"


def shown(pipeline: Pipeline, upload: VideoUpload) -> dict[str, Mapping[str, Any]]:
    """Asset → what its page tells of a failure of the partition: observations behind the materialisation."""
    found = {}
    for asset in ASSETS:
        of = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[upload.video_id])
        made = pipeline.instance.fetch_materializations(of, limit=1).records
        for record in pipeline.instance.fetch_observations(of, limit=1).records:
            if not made or made[0].storage_id < record.storage_id:
                observed = record.asset_observation
                assert observed is not None
                found[asset] = {name: entry.value for name, entry in observed.metadata.items()}
    return found


def test_a_failed_partition_shows_class_and_remedy(pipeline: Pipeline) -> None:
    bad = pipeline.upload("gate/bad.mp4", b"no video")

    result = pipeline.run(bad)

    assert not result.success
    for asset in ASSETS:
        seen = shown(pipeline, bad)[asset]
        assert seen["failure_class"] == "undecodable-video"
        assert seen["remedy"] == POLICIES[FailureClass.UNDECODABLE_VIDEO].remedy
        assert "known video format" in seen["cause"]
    # Each stands among the run's own events: the page shows no others under "View all historical events".
    of_run = pipeline.instance.get_records_for_run(
        result.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION
    )
    assert len(of_run.records) == len(ASSETS)


def test_in_a_backfill_only_what_failed_is_shown_so(pipeline: Pipeline, clip: Path) -> None:
    one, bad, other = test_backfill.uploads(pipeline, clip, "one", "bad", "other")

    test_backfill.backfill(pipeline, one, other)

    assert set(shown(pipeline, bad)) == set(ASSETS)
    assert shown(pipeline, one) == shown(pipeline, other) == {}


def test_what_fails_all_is_shown_of_all_that_are_left_until_they_are_made(
    pipeline: Pipeline, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = test_backfill.uploads(pipeline, clip, "one", "other")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise Forbidden("This role may not write.")

    with monkeypatch.context() as away:
        away.setattr("capstone_dagster.assets.steps.one_video.publish", refuse)
        test_backfill.backfill(pipeline, one, other)

    # Of the first all but the events is there; the second never had its turn.
    assert set(shown(pipeline, one)) == {"events"}
    assert set(shown(pipeline, other)) == set(ASSETS)
    assert shown(pipeline, one)["events"]["failure_class"] == "permission-denied"

    assert test_backfill.backfill(pipeline, one, other).success
    assert shown(pipeline, one) == shown(pipeline, other) == {}


def test_a_lost_worker_is_shown_though_it_said_nothing(pipeline: Pipeline) -> None:
    upload = pipeline.upload("gate/a.mp4", b"x")
    tags = {"dagster/partition": upload.video_id, ".dagster/capstone.upload_id": upload.upload_id}
    recovery_job.services.append(pipeline.services)
    run = pipeline.instance.create_run_for_job(
        recovery_job.recoverable_job(), tags=tags, status=dg.DagsterRunStatus.STARTED
    )
    pipeline.services.database.transact(mark_running, upload.upload_id, run.run_id)
    pipeline.instance.report_run_failed(run, "The machine is gone.")

    reconcile(pipeline.instance, pipeline.services)

    seen = shown(pipeline, upload)
    assert set(seen) == set(ASSETS)
    assert {each["failure_class"] for each in seen.values()} == {"worker-lost"}
