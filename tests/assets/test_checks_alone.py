"""Checks of finished videos, executed without the assets they judge: one video's, and many in one run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.analysis import DETECTIONS_SCHEMA
from capstone_dagster.assets.declared.jobs import check_videos
from capstone_dagster.assets.steps.references import DetectionsReference
from capstone_dagster.storage.uploads import VideoUpload
from tests.assets import recovery_job
from tests.assets.conftest import Pipeline, failure_of
from tests.assets.test_backfill import backfill, clip, loads, uploads
from tests.assets.test_checks import OF_DETECTIONS, OF_EVENTS, latest, spoil
from tests.storage.samples import dump

__all__ = ["clip", "loads"]
_RANGE = "dagster/asset_partition_range_"

pytestmark = pytest.mark.parametrize("aws_endpoint", ["ministack"], indirect=True)


@pytest.fixture
def finished(pipeline: Pipeline, clip: Path) -> list[VideoUpload]:
    """Two videos; of the first, the stored detections contradict themselves since."""
    one, two = uploads(pipeline, clip, "one", "two")
    assert backfill(pipeline, one, two).success
    return [one, two]


def damage(pipeline: Pipeline, upload: VideoUpload, folder: Path) -> None:
    done = latest(pipeline, "detections", DetectionsReference, upload.video_id)
    spoil(pipeline, done.prefix + "detections.parquet", DETECTIONS_SCHEMA, "x2", 1e6, folder)


def over(first: VideoUpload, last: VideoUpload) -> dict[str, str]:
    return {f"{_RANGE}start": first.video_id, f"{_RANGE}end": last.video_id}


def of_asset(pipeline: Pipeline, asset: str, tags: Mapping[str, str]) -> dg.ExecuteInProcessResult:
    """What Dagster's API makes of a selection of an asset's checks alone."""
    recovery_job.services.append(pipeline.services)
    job = recovery_job.recoverable_job()
    keys = {key for key in job.asset_layer.asset_graph.asset_check_keys if key.asset_key.path == [asset]}
    subset = job.get_subset(asset_selection=set(), asset_check_selection=keys)
    return subset.execute_in_process(tags=dict(tags), instance=pipeline.instance, raise_on_error=False)


def said(pipeline: Pipeline, result: dg.ExecuteInProcessResult) -> list[dg.AssetCheckEvaluation]:
    """The evaluations on record, which is more than the result of a run that failed has."""
    of_type = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    records = pipeline.instance.get_records_for_run(result.run_id, of_type=of_type).records
    events = [record.event_log_entry.dagster_event for record in records]
    return [event.asset_check_evaluation_data for event in events if event is not None]


def judged(pipeline: Pipeline, result: dg.ExecuteInProcessResult) -> dict[str | None, set[str]]:
    """Partition to the checks that were evaluated for it."""
    found: dict[str | None, set[str]] = {}
    for each in said(pipeline, result):
        found.setdefault(each.partition, set()).add(each.check_name)
    return found


def job(pipeline: Pipeline, *, tags: Mapping[str, str] = {}, **config: Any) -> dg.ExecuteInProcessResult:
    return check_videos.execute_in_process(
        run_config={"ops": {"check_each": {"config": config}}},
        tags=dict(tags),
        resources={"services": pipeline.services},
        instance=pipeline.instance,
        raise_on_error=False,
    )


@pytest.mark.parametrize(("asset", "names"), [("detections", OF_DETECTIONS), ("events", OF_EVENTS)])
def test_checks_alone_judge_the_partitions_that_a_run_names(
    pipeline: Pipeline, finished: list[VideoUpload], asset: str, names: set[str]
) -> None:
    one, two = finished

    assert judged(pipeline, of_asset(pipeline, asset, {"dagster/partition": one.video_id})) == {
        one.video_id: names
    }
    # A backfill's stretch, of one and of several: Dagster itself would name no partition.
    assert judged(pipeline, of_asset(pipeline, asset, over(two, two))) == {two.video_id: names}
    both = of_asset(pipeline, asset, over(one, two))
    assert both.success
    assert judged(pipeline, both) == {one.video_id: names, two.video_id: names}


def test_checks_alone_change_no_status_whatever_they_find(
    pipeline: Pipeline, finished: list[VideoUpload], tmp_path: Path
) -> None:
    damage(pipeline, finished[0], tmp_path)
    before = dump(pipeline.services.database)

    single = of_asset(pipeline, "detections", {"dagster/partition": finished[0].video_id})
    stretch = of_asset(pipeline, "detections", over(*finished))
    by_job = job(pipeline, videos=[each.video_id for each in finished])

    # Dagster fails a run in which a blocking check does.
    assert [each.success for each in (single, stretch, by_job)] == [False, False, False]
    for result in (single, stretch, by_job):
        wrong = [each for each in said(pipeline, result) if not each.passed]
        assert [(each.check_name, each.partition) for each in wrong] == [
            ("boxes_inside_frame", finished[0].video_id)
        ]
    assert (
        f"1 of 2 videos are wrong or have nothing to judge: {finished[0].video_id} (boxes_inside_frame)."
        in (failure_of(by_job))
    )
    assert dump(pipeline.services.database) == before


def test_check_videos_judges_partitions_and_what_is_named(
    pipeline: Pipeline, finished: list[VideoUpload]
) -> None:
    one, two = finished
    everything = OF_DETECTIONS | OF_EVENTS

    assert judged(pipeline, job(pipeline, tags={"dagster/partition": two.video_id})) == {
        two.video_id: everything
    }
    named = job(pipeline, videos=[two.video_id, one.video_id, two.video_id])
    assert named.success
    assert judged(pipeline, named) == {one.video_id: everything, two.video_id: everything}
    assert len(said(pipeline, named)) == 2 * len(everything)
    unknown = job(pipeline, videos=[one.video_id, "never-seen"])
    assert judged(pipeline, unknown) == {one.video_id: everything}
    assert "1 of 2 videos are wrong or have nothing to judge: never-seen (no detections)." in failure_of(
        unknown
    )
    assert "choose a partition, or name some" in failure_of(job(pipeline))
