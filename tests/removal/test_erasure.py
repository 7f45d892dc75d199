"""`capstone delete`: nothing of the video is left anywhere, and everything of the others is."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.scheduler.instigation import TickData, TickStatus
from sqlalchemy.engine import Engine

from capstone_dagster.assets.declared.jobs import analyze_videos
from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.intake.queue import ReceivedMessage
from capstone_dagster.intake.runs import NewUpload, materialization
from capstone_dagster.removal import erasure
from capstone_dagster.removal.dagster_records import DagsterRecords, RunTraces
from capstone_dagster.removal.erasure import ErasureRefused, Plan, VideoErasure
from capstone_dagster.removal.names import Names
from capstone_dagster.storage.analyses import publish_analysis
from capstone_dagster.storage.erasures import (
    ErasureUnderWay,
    VideoRows,
    begin_erasure,
    finish_erasure,
    last_erasure,
)
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.videos import latest_upload, record_upload
from tests.assets.conftest import Pipeline
from tests.support.command_line import Capstone

Everything = Callable[..., list[str]]
PICTURE = "![contact sheet](data:image/jpeg;base64,"


def reported(pipeline: Pipeline, upload: VideoUpload) -> None:
    """What the upload sensor leaves of an upload: a materialisation without a run, and its tick."""
    new = NewUpload(
        "k", upload, AnalysisRequest(upload.bucket, upload.key), ReceivedMessage("m", "", "", 0, 1)
    )
    pipeline.instance.report_runless_asset_event(materialization(new))
    pipeline.instance.create_tick(
        TickData(
            instigator_origin_id="o",
            instigator_name="upload_sensor",
            instigator_type=InstigatorType.SENSOR,
            status=TickStatus.SKIPPED,
            timestamp=time.time(),
            selector_id="s",
            cursor=upload.upload_id,
            skip_reason=f"about {upload.video_id}",
        )
    )


def run_several(pipeline: Pipeline, *uploads: VideoUpload) -> str:
    result = analyze_videos.execute_in_process(
        run_config={"ops": {"analyze_each": {"config": {"videos": [each.video_id for each in uploads]}}}},
        resources={"services": pipeline.services},
        instance=pipeline.instance,
    )
    return result.run_id


def materialized(pipeline: Pipeline, asset: str) -> set[str]:
    return set(pipeline.instance.get_materialized_partitions(dg.AssetKey(asset)))


def names_of(*uploads: VideoUpload) -> list[str]:
    return [
        text
        for each in uploads
        for text in (each.video_id, each.upload_id, each.key, f"s3://{each.bucket}/{each.key}")
    ]


def test_nothing_is_left_of_a_deleted_video(
    pipeline: Pipeline, clip: Path, everything: Everything, capstone: Capstone
) -> None:
    body = clip.read_bytes()
    other = pipeline.upload("gate/other.mp4", body + b"\0")
    earlier = pipeline.upload("gate/anna.mp4", body + b"\1")
    upload = pipeline.upload("gate/anna.mp4", body)
    # Not this video, though its name begins so.
    pipeline.aws.client("s3").put_object(Bucket="capstone-raw", Key="gate/anna.mp4.bak", Body=b"x")
    result = pipeline.run(upload)
    assert result.success
    for each in (other, upload):
        reported(pipeline, each)
    several = run_several(pipeline, other, upload)
    before = everything(upload.video_id)
    for place in ("runs", "event_logs", "job_ticks", "asset_keys", "dynamic_partitions", "videos", "events"):
        assert any(place in each for each in before), place
    assert any("references/" in each for each in before)
    assert everything(PICTURE)

    dry = capstone("delete", upload.video_id, "--dry-run", "--json")
    assert (dry.code, everything(upload.video_id)) == (0, before)
    outcome = capstone("delete", upload.video_id, "--yes", "--by", "hana", "--json")

    assert outcome.code == 0, outcome.err
    left = everything(*names_of(earlier, upload))
    assert {each.split(":")[0] for each in left} == {"capstone-raw/gate/anna.mp4.bak"}
    deleted = json.loads(outcome.out)
    planned = json.loads(dry.out)["counts"]
    assert deleted["counts"]["raw object versions"] == 2
    assert deleted["counts"]["runs"] == 1
    assert deleted["counts"]["runs about others too"] == 1
    assert deleted["counts"]["rows of videos"] == deleted["counts"]["partitions"] == 1
    assert {name: deleted["counts"].get(name) for name in planned} == planned
    assert deleted["cannot_be_deleted"]
    # The neighbour has all of its own, in Dagster too.
    for asset in ("raw_videos", "detections", "events"):
        assert materialized(pipeline, asset) == {other.video_id}, asset
    assert pipeline.instance.get_dynamic_partitions("videos") == [other.video_id]
    assert pipeline.services.database.transact(current_events, other.video_id)
    assert pipeline.instance.get_run_by_id(several) is not None
    assert pipeline.instance.get_latest_materialization_event(dg.AssetKey("events")) is not None
    assert pipeline.instance.get_asset_records([dg.AssetKey("events")])
    assert pipeline.services.objects.keys("detections/")

    # One line remains, and a repetition finds nothing more.
    last = pipeline.services.database.transact(last_erasure, upload.video_id)
    assert last is not None
    assert (last.requested_by, last.counts) == ("hana", deleted["counts"])
    assert last.finished_at is not None
    again = capstone("delete", upload.video_id, "--yes", "--json")
    assert again.code == 0, again.err
    assert "deleted already" in again.err
    assert json.loads(again.out)["counts"] == {}
    assert capstone("delete", "never-known-00000000", "--yes").code == 2


def test_an_upload_made_afterwards_is_a_new_video(
    pipeline: Pipeline, clip: Path, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    unasked = capstone("delete", upload.video_id)
    assert unasked.code == 1  # nobody is there to say yes
    assert pipeline.services.database.transact(latest_upload, upload.video_id) is not None
    looks: list[str] = []
    with monkeypatch.context() as counting:
        find = erasure.find_rows
        counting.setattr(erasure, "find_rows", lambda *asked: looks.append("look") or find(*asked))
        outcome = capstone("delete", upload.video_id, "--yes")
    assert outcome.code == 0
    # To show what would go, and once more when nothing new of it can begin.
    assert len(looks) == 2
    assert re.search(r"what +deleted\nraw object versions +1\n", outcome.out)
    assert re.search(r"rows of videos +1\n", outcome.out)
    assert "What cannot be deleted:\n- messages" in outcome.out
    again = pipeline.upload("gate/a.mp4", clip.read_bytes())
    assert again.video_id == upload.video_id
    assert pipeline.services.database.transact(latest_upload, again.video_id) is not None


STEPS = [
    (erasure, "versions_of"),
    (erasure, "delete_versions"),
    (erasure, "add_removed"),
    (erasure, "finish_erasure"),
]
# In the order in which rows of Dagster's tables are deleted or changed.
TABLES = ["asset_event_tags", "event_logs", "runs", "asset_keys", "kvs", "job_ticks"]


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(table: str) -> Iterator[None]:
    """The process ends when it is about to delete or change rows of a table."""

    def die(*arguments: Any) -> None:
        if re.match(rf"(DELETE FROM|UPDATE) {table}\b", arguments[2]):
            raise Killed

    sa.event.listen(Engine, "before_cursor_execute", die)
    try:
        yield
    finally:
        sa.event.remove(Engine, "before_cursor_execute", die)


@pytest.mark.timeout(600)  # a deletion is broken off at each step
def test_a_deletion_that_was_broken_off_anywhere_is_finished_by_repeating_it(
    pipeline: Pipeline,
    clip: Path,
    everything: Everything,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload = pipeline.upload("gate/anna.mp4", clip.read_bytes())
    assert pipeline.run(upload).success
    # The same bytes: what is analysed already is not analysed again for this.
    other = pipeline.upload("gate/other.mp4", clip.read_bytes())
    run_several(pipeline, other, upload)
    reported(pipeline, upload)
    eraser = VideoErasure(pipeline.services, pipeline.instance)

    for table in TABLES:
        with killed_at(table), pytest.raises(Killed):
            eraser.erase(eraser.plan(upload.video_id), by="hana")
    for place, name in STEPS:
        real = getattr(place, name)

        def dies_after(*arguments: Any, real: Any = real, **options: Any) -> Any:
            real(*arguments, **options)
            raise Killed

        with monkeypatch.context() as once:
            # `finish_erasure` is one transaction: it is done or not.
            once.setattr(place, name, _dies if name == "finish_erasure" else dies_after)
            with pytest.raises((Killed, KeyboardInterrupt)):
                eraser.erase(eraser.plan(upload.video_id), by="hana")
        # Meanwhile the fence stands: what comes late is not taken in.
        with pytest.raises(ErasureUnderWay):
            pipeline.services.database.transact(record_upload, upload)

    counts = eraser.erase(eraser.plan(upload.video_id), by="hana")

    assert counts["rows of videos"] == 1
    assert everything(*names_of(upload)) == []
    assert materialized(pipeline, "events") == {other.video_id}


def _dies(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_detections_of_the_same_bytes_go_with_the_last_video(pipeline: Pipeline, clip: Path) -> None:
    first = pipeline.upload("gate/a.mp4", clip.read_bytes())
    second = pipeline.upload("gate/b.mp4", clip.read_bytes())
    assert pipeline.run(first).success
    assert pipeline.run(second).success
    stored = pipeline.services.objects.keys("detections/")
    eraser = VideoErasure(pipeline.services, pipeline.instance)

    eraser.erase(eraser.plan(first.video_id), by="x")
    assert pipeline.services.objects.keys("detections/") == stored
    assert pipeline.services.database.transact(current_events, second.video_id)
    eraser.erase(eraser.plan(second.video_id), by="x")
    assert pipeline.services.objects.keys("") == []


def test_detections_that_another_video_has_not_published_yet_stay(pipeline: Pipeline, clip: Path) -> None:
    first = pipeline.upload("gate/a.mp4", clip.read_bytes())
    second = pipeline.upload("gate/b.mp4", clip.read_bytes())
    assert pipeline.run(first).success
    stored = pipeline.services.objects.keys("detections/")
    [detection_id] = {key.split("/")[1] for key in stored}
    under_way = dg.DagsterRun(
        job_name="analyze_upload",
        status=dg.DagsterRunStatus.STARTED,
        tags={
            ".dagster/capstone.video_id": second.video_id,
            ".dagster/capstone.detections_used": detection_id,
        },
    )
    pipeline.instance.add_run(under_way)
    eraser = VideoErasure(pipeline.services, pipeline.instance)

    eraser.erase(eraser.plan(first.video_id), by="x")
    assert pipeline.services.objects.keys("detections/") == stored
    pipeline.instance.report_run_canceled(under_way)
    eraser.erase(eraser.plan(second.video_id), by="x")
    assert pipeline.services.objects.keys("") == []


def test_a_run_that_does_not_end_keeps_everything(
    pipeline: Pipeline, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    run = dg.DagsterRun(
        job_name="analyze_upload",
        status=dg.DagsterRunStatus.STARTED,
        tags={".dagster/capstone.video_id": upload.video_id},
    )
    pipeline.instance.add_run(run)
    monkeypatch.setattr(erasure, "_RUNS_END_WITHIN_S", 0.1)
    eraser = VideoErasure(pipeline.services, pipeline.instance)

    with pytest.raises(ErasureRefused, match=r"End it|Repeat in a minute"):
        eraser.erase(eraser.plan(upload.video_id), by="x")
    assert pipeline.aws.client("s3").head_object(Bucket="capstone-raw", Key="gate/a.mp4")
    pipeline.instance.report_run_canceled(run)
    assert eraser.erase(eraser.plan(upload.video_id), by="x")["runs"] == 1


ROWS = VideoRows("v", "raw", "a.mp4", ("u",), {"a": "d"}, frozenset({"r"}), {"videos": 1})


@pytest.mark.parametrize(
    ("runs", "cancel", "obstacle"),
    [
        ([RunTraces("r", True, True, frozenset())], [], None),
        ([RunTraces("r", False, True, frozenset())], ["r"], None),
        ([RunTraces("r", False, False, frozenset())], [], "Run r analyses several videos"),
        ([RunTraces("r", True, False, frozenset())], [], None),
    ],
)
def test_a_plan_ends_own_runs_and_waits_for_others(
    runs: list[RunTraces], cancel: list[str], obstacle: str | None
) -> None:
    plan = Plan("v", ROWS, runs, frozenset({"d", "e"}), frozenset({"a"}), frozenset({"d"}), ["events"])
    assert list(plan.cancel) == cancel
    assert (plan.obstacle is None) == (obstacle is None)
    assert (plan.obstacle or "").startswith(obstacle or "")
    prefixes = {prefix for _, prefix in plan.prefixes}
    assert {"detections/e/", "analyses/a/", "references/assets/events/v.json"} <= prefixes
    assert plan.kept == {"d"}
    assert "detections/d/" not in prefixes


def test_a_plan_waits_for_a_backfill() -> None:
    plan = Plan("v", None, [], frozenset(), frozenset(), frozenset(), [], ["b"])
    assert "Backfill b" in (plan.obstacle or "")


def test_backfills_that_are_over_lose_the_name() -> None:
    videos = dg.DynamicPartitionsDefinition(name="videos")

    @dg.asset(partitions_def=videos)
    def seen() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("videos", ["v1", "v2"])
        asked = PartitionBackfill.from_asset_partitions(
            backfill_id="b",
            asset_graph=dg.Definitions(assets=[seen]).resolve_asset_graph(),
            partition_names=["v1", "v2"],
            asset_selection=[seen.key],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title="v1 again",
            description=None,
            run_config=None,
        )
        instance.add_backfill(asked)
        records, names = DagsterRecords(instance), Names("v1")
        assert records.running_backfills(names) == ["b"]
        assert records.running_backfills(Names("v3")) == []
        instance.update_backfill(asked.with_status(BulkActionStatus.COMPLETED_SUCCESS))
        assert records.running_backfills(names) == []
        assert records.remove(names, [], dry_run=True)["backfills"] == 1
        assert records.remove(names, [], dry_run=False)["backfills"] == 1
        [left] = instance.get_backfills()
        assert left.title == "deleted-video again"
        assert "v1" not in str(left)
        assert "v2" in str(left)


def test_a_run_about_an_address_that_begins_with_this_one_is_another_videos() -> None:
    names = Names("a-11111111", ("u1", "s3://raw/gate/a.mp4"))
    with dg.DagsterInstance.ephemeral() as instance:
        other = {
            ".dagster/capstone.video_id": "a-mp4-22222222",
            ".dagster/capstone.s3_uri": "s3://raw/gate/a.mp4.mp4",
        }
        instance.add_run(dg.DagsterRun(job_name="analyze_upload", tags=other))
        own = {".dagster/capstone.upload_id": "u1", ".dagster/capstone.s3_uri": "s3://raw/gate/a.mp4"}
        found = instance.add_run(dg.DagsterRun(job_name="analyze_upload", tags=own))

        assert [run.run_id for run in DagsterRecords(instance).runs(names, [])] == [found.run_id]


@pytest.mark.parametrize("name", ["gate-a1", 'a "quoted" \\ 휴게실.mp4'])
def test_names_are_found_however_deep_they_are_quoted(name: str) -> None:
    once = json.dumps({"a": name})
    for text in (name, once, json.dumps({"b": once}), json.dumps(name, ensure_ascii=False)):
        assert any(form in text for form in Names(name).forms)


def test_nothing_is_published_while_a_video_is_being_deleted(database: Any) -> None:
    from tests.storage.samples import ANALYSIS, FACTS, ROWS, UPLOAD, count

    database.transact(record_upload, UPLOAD)
    line = database.transact(begin_erasure, "v1", "hana")
    with pytest.raises(ErasureUnderWay, match="capstone delete v1"):
        database.transact(publish_analysis, ANALYSIS, ROWS, FACTS)
    assert count(database, "analyses") == 0
    assert database.transact(begin_erasure, "v1", "another") == line
    database.transact(finish_erasure, line, "v1")
    with database.engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT t::text FROM capstone.erasures t")).scalar_one()
    assert "v1" not in kept.replace(f"{line}", "", 1).split(",")
    database.transact(record_upload, UPLOAD)
