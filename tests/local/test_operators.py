"""What operators do to videos, and what a back end hears of it, while the local stack works by itself.

The tests follow each other on one stack, as a day does.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import SensorInstigatorData
from dagster._core.storage.tags import BACKFILL_ID_TAG

from batch_gpu.local import live_process
from capstone_dagster.failures.run_steps import PASS_STEP
from capstone_dagster.local.aws import NOTICE_TOPIC
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.outbox import outbox_backlog
from tests.support.command_line import Capstone
from tests.support.live_stack import DEADLINE_S, PASSIVE, LiveStack, SharedStack, repeated
from tests.support.waiting import scaled, wait_for

pytestmark = pytest.mark.live
STACK = PASSIVE
# In the order in which a video goes through them; it is in one of the last three when it is over.
STATES = ("received", "queued", "running", "failed", "cancelled", "done")
# How long a state may be untrue, with room for a machine that others use as well.
TRUE_WITHIN_S = scaled(30)


@dataclass
class BackEnd:
    """A queue that is subscribed to the notices."""

    stack: LiveStack
    notices: list[dict[str, Any]] = field(default_factory=list)

    def subscribe(self) -> None:
        sqs, sns = self.stack.client("sqs"), self.stack.client("sns")
        self.queue = sqs.create_queue(QueueName="back-end")["QueueUrl"]
        attributes = sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]
        topic = self.stack.local.resources.notice_topic_arn
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=attributes["QueueArn"])

    def kinds(self, video_id: str) -> list[str]:
        """Kinds of the notices of a video in the order in which they came, each notice once."""
        sqs = self.stack.client("sqs")
        while messages := sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                notice = json.loads(json.loads(message["Body"])["Message"])
                if notice["notice_id"] not in {each["notice_id"] for each in self.notices}:
                    self.notices.append(notice)
                sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return [each["kind"].removeprefix("video.") for each in self.notices if each["video_id"] == video_id]

    def until(self, video_id: str, *expected: str) -> None:
        wait_for(f"{expected} of {video_id}", lambda: self.kinds(video_id) == list(expected), DEADLINE_S)


@pytest.fixture(scope="module")
def back_end(shared_stack: SharedStack) -> BackEnd:
    back_end = BackEnd(shared_stack.running(STACK))
    back_end.subscribe()
    return back_end


def watched(stack: LiveStack, video_id: str, until: Callable[[str], bool]) -> list[tuple[str, float, float]]:
    """Each (state, progress) that a video's row has, and when it was written, seconds since 1970."""
    seen: list[tuple[str, float, float]] = []

    def look() -> bool:
        row = stack.row(video_id)
        now = (row["state"], row["progress"])
        if not seen or seen[-1][:2] != now:
            seen.append((*now, row["updated_at"].timestamp()))
        return until(row["state"])

    wait_for(f"the end of {video_id}", look, DEADLINE_S)
    return seen


@pytest.fixture
def one_run_at_a_time(stack: LiveStack) -> Iterator[None]:
    """What is uploaded meanwhile waits in Dagster's queue."""
    with dg.DagsterInstance.get() as instance:
        [pool] = instance.event_log_storage.get_pool_limits()
        instance.event_log_storage.set_concurrency_slots(pool.name, 1)
        yield
        instance.event_log_storage.set_concurrency_slots(pool.name, pool.limit)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_run_at_a_time")
def test_an_operator_says_what_goes_first_and_what_ends(
    stack: LiveStack, back_end: BackEnd, capstone: Capstone, clip: Path, tmp_path: Path
) -> None:
    endless = stack.upload("gate/endless.mp4", repeated(clip, 200, tmp_path / "endless.mp4"))
    wait_for("its analysis", lambda: stack.row(endless)["progress"] > 0, DEADLINE_S)
    unwanted = stack.upload("gate/unwanted.mp4", clip)
    stack.until(unwanted, "queued")
    broken = stack.upload("gate/broken.mp4", b"this is no video")
    stack.until(broken, "queued")
    urgent = stack.upload("gate/urgent.mp4", clip)
    stack.until(urgent, "queued")

    waiting = {row["video_id"]: row for row in json.loads(capstone("status", "--json").out)}
    assert [waiting[each]["queue_position"] for each in (unwanted, broken, urgent)] == [1, 2, 3]
    assert waiting[urgent]["waiting_for"] == "3rd of 3 in the queue, 1 running"
    assert waiting[endless]["queue_position"] is None
    assert capstone("prioritize", urgent).out == f"{urgent} is 1st of 3 in the queue, 1 running.\n"
    assert capstone("cancel", unwanted).out == f"{unwanted} is cancelled; 1 run ended.\n"

    [run] = stack.runs(endless)
    assert live_process(run) is not None
    ended = capstone("cancel", endless, "--by", "kim")
    assert (ended.code, ended.out) == (0, f"{endless} is cancelled; 1 run ended.\n"), ended.err
    wait_for("its worker's end", lambda: live_process(run) is None, DEADLINE_S)

    seen = watched(stack, urgent, lambda state: state == "done")
    # What stood before it in the queue has begun after it.
    with dg.DagsterInstance.get() as instance:
        record = instance.get_run_record_by_id(stack.runs(urgent)[0].run_id)
        stack.until(broken, "failed")
        later = instance.get_run_record_by_id(stack.runs(broken)[0].run_id)
    assert record is not None
    assert later is not None
    assert record.start_time is not None
    assert later.start_time is not None
    assert record.start_time < later.start_time

    states, progress = [state for state, _, _ in seen], [share for _, share, _ in seen]
    assert states == sorted(states, key=STATES.index), "forward only"
    assert set(states) == {"queued", "running", "done"}
    assert progress == sorted(progress)
    assert len(set(progress)) > 3, "it rises while it runs"
    began = next(at for state, _, at in seen if state == "running")
    over = next(at for state, _, at in seen if state == "done")
    # Its row says `running` once its worker has begun, and `done` before the run has ended.
    assert began - record.start_time < TRUE_WITHIN_S
    record = wait_for("the run's end", lambda: _ended(stack, urgent), DEADLINE_S)
    assert over <= record.end_time

    for video_id, by in ((endless, "kim"), (unwanted, "")):
        row = stack.row(video_id)
        assert row["state"] == "cancelled"
        assert by in row["message"]
        assert stack.database.transact(analyses_of, video_id) == []
        assert [run.status for run in stack.runs(video_id)] == [dg.DagsterRunStatus.CANCELED]
    back_end.until(urgent, "received", "analyzed")
    back_end.until(broken, "received", "failed")
    assert [back_end.kinds(each) for each in (endless, unwanted)] == [["received"], ["received"]]


def _ended(stack: LiveStack, video_id: str) -> Any:
    with dg.DagsterInstance.get() as instance:
        record = instance.get_run_record_by_id(stack.runs(video_id)[0].run_id)
    return record if record is not None and record.end_time else None


@pytest.mark.timeout(900)
def test_retry_publishes_what_a_fault_kept_back_and_notices_wait_for_sns(
    stack: LiveStack, back_end: BackEnd, capstone: Capstone, clip: Path
) -> None:
    video = stack.upload("gate/kept_back.mp4", clip)
    sns = stack.client("sns")
    with stack.held_back(video):
        back_end.until(video, "received")
        with dg.DagsterInstance.get() as instance:
            detections = dg.AssetKey("detections")
            wait_for(
                "its detections",
                lambda: video in instance.get_materialized_partitions(detections),
                DEADLINE_S,
            )
        sns.delete_topic(TopicArn=stack.local.resources.notice_topic_arn)
        stack.take_no_writes("on")
    wait_for("the failure", lambda: _ended(stack, video), DEADLINE_S)
    refused = capstone("retry", "--class", "database-unavailable", "--since", "1h")
    assert "0 runs started again" in refused.out, "its row cannot say yet that it failed"
    stack.take_no_writes("off")
    row = stack.until(video, "failed")
    assert row["failure_class"] == "database-unavailable"

    retried = capstone("retry", "--class", "database-unavailable", "--since", "1h", "--json")

    [answer] = json.loads(retried.out)
    assert (answer["video_id"], answer["from_step"], answer["gpu"]) == (video, "events.persist_events", False)
    assert stack.until(video, "done")["run_id"] == answer["run_id"]
    [analysis] = stack.database.transact(analyses_of, video)
    assert len(stack.database.transact(current_events, video)) == analysis["events"] > 0
    again, failed = stack.runs(video)
    assert again.run_id == answer["run_id"]
    with dg.DagsterInstance.get() as instance:
        starts = [
            entry.dagster_event.step_key
            for run in (failed, again)
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
            if entry.dagster_event is not None
        ]
    assert starts.count(PASS_STEP) == 1

    assert back_end.kinds(video) == ["received"], "SNS has taken nothing meanwhile"
    sns.create_topic(Name=NOTICE_TOPIC)
    back_end.subscribe()
    back_end.until(video, "received", "failed", "analyzed")
    numbers = [each["notice_id"] for each in back_end.notices if each["video_id"] == video]
    assert numbers == sorted(numbers)
    # What has arrived is written down as sent a moment later.
    wait_for("an outbox in which nothing waits", lambda: not stack.database.transact(outbox_backlog).waiting)


@pytest.mark.timeout(900)
def test_the_summary_follows_published_events_and_nothing_before_them_goes_by_itself(
    stack: LiveStack,
) -> None:
    with dg.DagsterInstance.get() as instance:

        def last(asset: str) -> float:
            records = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
            return records[0].timestamp if records else 0.0

        def made() -> bool:
            let_minutes_pass(instance)
            return last("daily_activity") > last("events") > 0

        wait_for("the summary", made, DEADLINE_S)
        asked_for = ("analyze_upload", BACKFILL_ID_TAG)
        by_themselves = [run for run in instance.get_runs() if not {run.job_name, *run.tags} & set(asked_for)]
        assert {asset for run in by_themselves for asset in run.asset_selection or ()} == {
            dg.AssetKey("daily_activity")
        }
    nodes = stack.ask("{ assetNodes { assetKey { path } automationCondition { label } } }")
    automated = {node["assetKey"]["path"][0] for node in nodes if node["automationCondition"]}
    assert automated == {"daily_activity"}


def let_minutes_pass(instance: dg.DagsterInstance) -> None:
    """Have the sensor of the summaries look again, as it does every three minutes."""
    [sensor] = [each for each in instance.all_instigator_state() if each.name == "summaries"]
    data = sensor.instigator_data
    assert isinstance(data, SensorInstigatorData)
    age_s = time.time() - max(data.last_tick_timestamp or 0, data.last_tick_start_timestamp or 0)
    if not 10 < age_s < 180:
        return  # it looks in a moment, or did: its own record must not be written over
    earlier = SensorInstigatorData(
        last_tick_timestamp=time.time() - 180,
        min_interval=data.min_interval,
        cursor=data.cursor,
        last_sensor_start_timestamp=data.last_sensor_start_timestamp,
        sensor_type=data.sensor_type,
    )
    instance.update_instigator_state(sensor.with_data(earlier))
