"""Backfills on the local stack, asked for as Dagster's pages do, through the loss of their worker."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from batch_gpu.local import live_process
from capstone_dagster.intake.identity import identify
from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.sources import head_source
from capstone_dagster.storage.videos import record_upload
from tests.batch_gpu.test_ui import BACKFILL
from tests.support.command_line import Capstone
from tests.support.live_stack import DEADLINE_S, RECOVERING, LiveStack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.live
STACK = RECOVERING
ASSETS = ("extracted_frames", "detections", "events")
EVENTS = dg.AssetKey("events")
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    """Names of videos → ids."""
    return {}


def record(stack: LiveStack, name: str, video: Path) -> str:
    """A video that Dagster and the event store know and nobody has analysed: its id."""
    s3, key = stack.client("s3"), f"gate/{name}.mp4"
    if "footage" not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
        region = {"LocationConstraint": s3.meta.region_name}
        s3.create_bucket(Bucket="footage", CreateBucketConfiguration=region)
    s3.put_object(Bucket="footage", Key=key, Body=video.read_bytes() + name.encode())
    upload = identify(AnalysisRequest("footage", key), head_source(s3, "footage", key), read_settings())
    stack.database.transact(record_upload, upload)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("videos", [upload.video_id])
    return upload.video_id


def runs_of(instance: dg.DagsterInstance, backfill_id: str) -> list[dg.DagsterRun]:
    """A backfill's runs, first one first."""
    return list(instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill_id}), ascending=True))


def ended(stack: LiveStack, instance: dg.DagsterInstance, backfill_id: str) -> str:
    """How a backfill ended, once it has."""

    def status() -> str | None:
        stack.local.check()
        backfill = instance.get_backfill(backfill_id)
        assert backfill is not None
        name = backfill.status.name
        return name if name.startswith(("COMPLETED_", "FAILED", "CANCELED")) else None

    return wait_for("the backfill's end", status, DEADLINE_S)


def made(instance: dg.DagsterInstance, runs: list[dg.DagsterRun], asset: dg.AssetKey) -> list[str]:
    """Partitions of the asset, as often as one of the runs has materialised them, in order."""
    entries = [
        entry
        for run in runs
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    ]
    materialized = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    return [str(event.partition) for event in materialized if event.asset_key == asset]


@pytest.mark.timeout(900)
def test_a_backfill_goes_on_where_its_worker_was_killed(
    stack: LiveStack, known: dict[str, str], clip: Path
) -> None:
    known |= {name: record(stack, name, clip) for name in NAMES}
    videos = list(known.values())
    params = {
        "assetSelection": [{"path": [asset]} for asset in ASSETS],
        "partitionNames": videos,
        "tags": [{"key": "user", "value": "kim"}],
    }
    visible: dict[str, set[int]] = {video: set() for video in videos}

    def look() -> None:
        for video in videos:
            visible[video].add(len(stack.database.transact(current_events, video)))

    with dg.DagsterInstance.get() as instance:
        with stack.held_back(videos[-1]):
            backfill_id = stack.ask(BACKFILL, params=params)["backfillId"]

            def first_published() -> bool:
                look()
                return bool(set(videos) & set(instance.get_materialized_partitions(EVENTS)))

            wait_for("the first video", first_published, DEADLINE_S)
            [run] = runs_of(instance, backfill_id)
            pid = live_process(run)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

        def gone_on() -> bool:
            look()
            stack.local.check()
            return runs_of(instance, backfill_id)[-1].status == dg.DagsterRunStatus.SUCCESS

        wait_for("the run that goes on", gone_on, DEADLINE_S)
        look()

        lost, again = runs = runs_of(instance, backfill_id)
        assert (lost.status, again.status) == (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS)
        assert again.parent_run_id == lost.run_id
        # What the first worker had finished nobody has done again; it was the first video at least.
        assert sorted(made(instance, runs, EVENTS)) == sorted(videos)
        assert len(made(instance, [lost], EVENTS)) in (1, 2)
        messages = " ".join(entry.message for entry in instance.all_logs(again.run_id))
        assert "was finished before." in messages
    for video in videos:
        [analysis] = stack.database.transact(analyses_of, video)
        assert stack.row(video)["state"] == "done"
        assert visible[video] <= {0, analysis["events"]}, "whole or not at all"
        assert analysis["events"] > 0


@pytest.mark.timeout(900)
def test_a_backfill_from_the_terminal_is_compared_and_rolled_back(
    stack: LiveStack, known: dict[str, str], capstone: Capstone
) -> None:
    one, two, three = (known[name] for name in NAMES)
    before = {video: stack.database.transact(analyses_of, video)[0] for video in (one, two)}

    def ask(*options: str) -> str:
        outcome = capstone("reanalyze", *options, "--json")
        assert outcome.code == 0, outcome.err
        return str(json.loads(outcome.out)["backfill_id"])

    with dg.DagsterInstance.get() as instance:
        forced, derived = ask(one, "--force", "--by", "kim"), ask(two, "--events-only")
        # Dagster has counted what the other test's run went on with to its backfill, too.
        for backfill in instance.get_backfills():
            assert ended(stack, instance, backfill.backfill_id) == "COMPLETED_SUCCESS"
        [run] = runs_of(instance, forced)
        assert (run.tags["user"], run.tags["capstone/force"]) == ("kim", "true")
        assert made(instance, runs_of(instance, derived), dg.AssetKey("detections")) == []

    # The rules are the same: the same analysis, once.
    assert [each["analysis_id"] for each in stack.database.transact(analyses_of, two)] == [
        before[two]["analysis_id"]
    ]
    current = next(each for each in stack.database.transact(analyses_of, one) if each["is_current"])
    assert current["analysis_id"] != before[one]["analysis_id"]
    assert current["detection_id"] != before[one]["detection_id"]
    assert current["run_id"] == run.run_id

    compared: Mapping[str, Any] = json.loads(capstone("compare", one, "--json").out)
    assert compared["from"]["analysis_id"] == before[one]["analysis_id"]
    assert compared["to"]["analysis_id"] == current["analysis_id"]
    assert (compared["appeared"], compared["vanished"], compared["moved"]) == ([], [], [])

    assert capstone("rollback", one).code == 0

    [shown] = {event["analysis_id"] for event in stack.database.transact(current_events, one)}
    assert shown == before[one]["analysis_id"]
    again = capstone("compare", one, "--json")
    assert json.loads(again.out)["to"]["analysis_id"] == before[one]["analysis_id"]
    assert len(stack.database.transact(analyses_of, three)) == 1, "nobody asked for it"
