"""The outbox over a real PostgreSQL and SNS of both emulators: everything leaves, once, in order."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from capstone_dagster.catalog.metrics import OUTBOX_AGE, OUTBOX_REFUSED, OUTBOX_SENT
from capstone_dagster.catalog.model import Metric
from capstone_dagster.outbox.sensor import outbox_sensor
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.outbox import Notice, outbox_backlog, send_notices
from capstone_dagster.storage.video_status import mark_failed, mark_running, requeue
from capstone_dagster.storage.videos import record_upload
from capstone_dagster.topics import Message, Topic
from tests.conftest import Aws
from tests.storage.samples import NOON, UPLOAD, count, notices, publish

FIELDS = {
    "notice_id", "kind", "at", "video_id", "external_id", "upload_id", "bucket", "key", "camera", "state",
    "failure_class", "message", "tried_again", "analysis_id", "events", "current", "run_id", "uploaded_at",
    "recorded_at", "watch", "matches", "page",
}  # fmt: skip


@dataclass
class Outbox:
    """The sensor with its cursor, and a queue that is subscribed to its topic."""

    aws: Aws
    database: Database
    queue_url: str
    clock: Callable[[float], None]
    topic_arn: str | None
    cursor: str | None = None
    counted: dict[str, list[float]] = field(default_factory=dict)

    def tick(self) -> str:
        url = self.database.engine.url.render_as_string(hide_password=False)
        services = Services(read_settings(database_url=url, notice_topic_arn=self.topic_arn))
        services.metrics.add_all = self._count  # type: ignore[method-assign, assignment]
        with dg.build_sensor_context(cursor=self.cursor, resources={"services": services}) as context:
            result = outbox_sensor(context)
        services.database.close()
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        assert result.skip_reason is not None
        return str(result.skip_reason.skip_message)

    def _count(self, values: Mapping[Metric, float]) -> None:
        for metric, value in values.items():
            self.counted.setdefault(metric.name, []).append(value)

    def received(self) -> list[dict[str, Any]]:
        """What subscribers have got since the last look, in order of their arrival."""
        return [each["body"] for each in self.envelopes()]

    def envelopes(self) -> list[dict[str, Any]]:
        sqs, found = self.aws.client("sqs"), []
        while messages := sqs.receive_message(
            QueueUrl=self.queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=0
        ).get("Messages"):
            for message in messages:
                sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
                envelope = json.loads(message["Body"])
                given = {name: each["Value"] for name, each in envelope["MessageAttributes"].items()}
                found.append({"body": json.loads(envelope["Message"]), "attributes": given})
        return sorted(found, key=lambda each: each["body"]["notice_id"])

    def unsent(self) -> int:
        return self.database.transact(outbox_backlog).waiting


def subscribe(aws: Aws, topic_arn: str) -> str:
    sqs = aws.client("sqs")
    fifo = topic_arn.endswith(".fifo")
    name = "consumer.fifo" if fifo else "consumer"
    more = {"Attributes": {"FifoQueue": "true"}} if fifo else {}
    url = sqs.create_queue(QueueName=name, **more)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    aws.client("sns").subscribe(TopicArn=topic_arn, Protocol="sqs", Endpoint=arn)
    return str(url)


@pytest.fixture
def outbox(aws: Aws, database: Database, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    ahead = [0.0]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])

    def put_forward(seconds: float) -> None:
        ahead[0] += seconds

    arn = aws.resources.notice_topic_arn
    return Outbox(aws, database, subscribe(aws, arn), put_forward, arn)


def upload(database: Database, number: int) -> None:
    database.transact(record_upload, replace(UPLOAD, upload_id=f"u{number}", video_id=f"v{number}"))


def fail(database: Database, number: int, **more: Any) -> None:
    database.transact(
        mark_failed, f"u{number}", "r", failure_class="storage-unavailable", message="S3 is away.", **more
    )


def test_every_kind_says_what_a_consumer_needs(outbox: Outbox) -> None:
    outbox.database.transact(
        record_upload, replace(UPLOAD, external_id="84", recorded_at=NOON, recorded_at_source="name")
    )
    fail(outbox.database, 1, tried_again=True)
    publish(outbox.database)

    assert outbox.tick() == "3 notices sent."

    received, failed, analyzed = outbox.received()
    assert set(received) == set(failed) == set(analyzed) == FIELDS
    same = {
        "video_id": "v1", "external_id": "84", "upload_id": "u1", "bucket": "raw", "key": "gate/a.mp4",
        "camera": "gate", "uploaded_at": "2026-01-02T12:00:00.000Z",
        "recorded_at": "2026-01-02T12:00:00.000Z",
    }  # fmt: skip
    assert [same.items() <= each.items() for each in (received, failed, analyzed)] == [True] * 3
    assert (received["kind"], received["state"]) == ("video.received", "received")
    assert (failed["kind"], failed["state"], failed["failure_class"]) == (
        "video.failed", "failed", "storage-unavailable",
    )  # fmt: skip
    assert (failed["message"], failed["tried_again"], failed["run_id"]) == ("S3 is away.", True, "r")
    assert (analyzed["kind"], analyzed["state"], analyzed["analysis_id"]) == ("video.analyzed", "done", "a1")
    assert (analyzed["events"], analyzed["current"], analyzed["failure_class"]) == (2, True, None)
    assert outbox.unsent() == 0
    assert outbox.received() == []
    assert outbox.tick() == "0 notices sent."
    assert outbox.counted[OUTBOX_SENT.name] == [3, 0]
    assert outbox.counted[OUTBOX_AGE.name] == [0, 0]


def test_attributes_can_be_filtered_by(outbox: Outbox) -> None:
    outbox.database.transact(record_upload, replace(UPLOAD, external_id="84"))
    fail(outbox.database, 1)
    outbox.tick()
    first, second = (each["attributes"] for each in outbox.envelopes())
    assert first == {
        "kind": "video.received",
        "video_id": "v1",
        "external_id": "84",
        "camera": "gate",
        "tried_again": "false",
    }
    assert second == first | {"kind": "video.failed", "failure_class": "storage-unavailable"}
    outbox.database.transact(
        mark_failed, "u1", "r1", failure_class="timeout", message="It took long.", tried_again=True
    )
    outbox.tick()
    assert outbox.envelopes()[0]["attributes"]["tried_again"] == "true"


def test_without_a_topic_notices_are_kept_and_leave_once_there_is_one(outbox: Outbox) -> None:
    arn, outbox.topic_arn = outbox.topic_arn, None
    upload(outbox.database, 1)
    assert "CAPSTONE_NOTICE_TOPIC_ARN is not set" in outbox.tick()
    assert outbox.unsent() == 1

    outbox.topic_arn = arn
    outbox.tick()
    assert [each["kind"] for each in outbox.received()] == ["video.received"]


def test_many_videos_leave_in_one_tick_each_in_order(outbox: Outbox) -> None:
    for number in range(25):
        upload(outbox.database, number)
    for number in range(25):
        fail(outbox.database, number)

    assert outbox.tick() == "50 notices sent."

    got = outbox.received()
    assert len(got) == 50
    for number in range(25):
        of_video = [each["kind"] for each in got if each["video_id"] == f"v{number}"]
        assert of_video == ["video.received", "video.failed"]


def test_while_sns_is_away_notices_wait_and_it_is_asked_less_and_less(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(outbox.database, 1)
    arn = outbox.topic_arn
    outbox.topic_arn = f"{arn}-gone"
    asked = []
    real = Topic.publish

    def publish(self: Topic, messages: Sequence[Message]) -> dict[int, str]:
        asked.append(len(messages))
        return real(self, messages)

    monkeypatch.setattr(Topic, "publish", publish)

    account = outbox.tick()
    assert "CAPSTONE_NOTICE_TOPIC_ARN should name a topic that exists" in account
    outbox.tick()
    assert len(asked) == 1, "not before its time"
    outbox.clock(5.1)
    outbox.tick()
    outbox.clock(5.1)
    outbox.tick()
    assert len(asked) == 2
    outbox.clock(5.1)
    outbox.tick()
    assert len(asked) == 3
    assert outbox.unsent() == 1
    assert outbox.counted[OUTBOX_REFUSED.name][-1] == 1
    assert outbox.counted[OUTBOX_AGE.name][-1] >= 15

    outbox.topic_arn = arn
    outbox.clock(60)
    assert outbox.tick() == "1 notices sent."
    assert len(outbox.received()) == 1


def test_a_refused_notice_holds_back_its_own_video_alone(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        upload(outbox.database, number)
        fail(outbox.database, number)
    poisoned = {"v0", "v3"}
    publish = Topic.publish

    def refuse_some(self: Topic, messages: Sequence[Message]) -> dict[int, str]:
        fine = [each for each in messages if each.group not in poisoned]
        refused = {place: "too long" for place, each in enumerate(messages) if each.group in poisoned}
        return refused | (publish(self, fine) if fine else {})

    monkeypatch.setattr(Topic, "publish", refuse_some)

    account = outbox.tick()

    assert account == "20 notices sent, 2 refused and tried again later: too long"
    assert {each["video_id"] for each in outbox.received()}.isdisjoint(poisoned)
    backlog = outbox.database.transact(outbox_backlog)
    assert (backlog.waiting, backlog.refused, backlog.refusal) == (4, 2, "too long")
    assert "Notices wait for" in outbox.tick(), "it is not due"

    poisoned.clear()
    with outbox.database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE capstone.outbox SET try_at = now() WHERE refusals > 0"))
    assert outbox.tick() == "4 notices sent."
    got = outbox.received()
    for video in ("v0", "v3"):
        kinds = [each["kind"] for each in got if each["video_id"] == video]
        assert kinds == ["video.received", "video.failed"]


def test_two_daemons_send_each_notice_once_and_in_order(database: Database) -> None:
    for number in range(30):
        upload(database, number)
        fail(database, number)
    sent: list[tuple[str, str]] = []
    lock, together = threading.Lock(), threading.Barrier(3)

    def send(taken: Sequence[Notice]) -> dict[int, str]:
        with lock:
            sent.extend((each.video_id, each.kind) for each in taken)
        return {}

    def daemon() -> None:
        own = Database(database.engine.url.render_as_string(hide_password=False))
        together.wait()
        while own.transact(outbox_backlog).waiting:
            own.transact(send_notices, send, most=10)
        own.close()

    threads = [threading.Thread(target=daemon) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(sent) == len(set(sent)) == 60
    for number in range(30):
        assert [kind for video, kind in sent if video == f"v{number}"] == ["video.received", "video.failed"]


def test_notices_of_two_uploads_leave_in_the_order_of_their_numbers(database: Database) -> None:
    """Whoever forgets what comes with a lower number than the last one loses nothing."""
    for upload_id in ("u1", "u2"):
        database.transact(record_upload, replace(UPLOAD, upload_id=upload_id))
    account: list[tuple[int, str, str]] = []

    def send(taken: Sequence[Notice]) -> dict[int, str]:
        account.extend((each.notice_id, each.kind, each.upload_id) for each in taken)
        return {}

    def send_all() -> None:
        while database.transact(send_notices, send, most=10)[0]:
            pass

    failure = {"failure_class": "internal", "message": "m"}
    other = threading.Thread(target=database.transact, args=(mark_failed, "u2", "r2"), kwargs=failure)
    with database.transaction() as first:
        mark_failed(first, "u1", "r1", failure_class="internal", message="m")
        other.start()
        other.join(2)
        send_all()
    other.join(60)
    send_all()

    assert [number for number, _, _ in account] == sorted(number for number, _, _ in account)
    assert [each[1:] for each in account[2:]] == [("video.failed", "u1"), ("video.failed", "u2")]


def test_what_is_held_by_one_daemon_is_left_alone_by_the_other(database: Database) -> None:
    for number in range(3):
        upload(database, number)
        fail(database, number)
    seen: list[int] = []

    def send_while_locked(taken: Sequence[Notice]) -> dict[int, str]:
        others, _ = database.transact(send_notices, lambda more: seen.append(len(more)) or {}, most=10)  # type: ignore[func-returns-value]
        assert others == 3 - len(taken)
        return {}

    assert database.transact(send_notices, send_while_locked, most=2)[0] == 2
    assert seen == [1]


def test_a_sender_that_dies_leaves_everything_to_be_sent(database: Database) -> None:
    upload(database, 1)

    def die(taken: Sequence[Notice]) -> dict[int, str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.transact(send_notices, die, most=10)

    assert database.transact(outbox_backlog).waiting == 1
    assert database.transact(send_notices, lambda taken: {}, most=10) == (1, {})


def test_a_refused_one_is_tried_again_less_and_less(database: Database) -> None:
    upload(database, 1)
    delays = []
    for _ in range(10):
        with database.engine.begin() as connection:
            connection.execute(sa.text("UPDATE capstone.outbox SET try_at = NULL"))
        database.transact(send_notices, lambda taken: {each.notice_id: "no" for each in taken}, most=10)
        with database.engine.connect() as connection:
            due = connection.execute(sa.text("SELECT try_at - clock_timestamp() FROM capstone.outbox"))
            delays.append(round(due.scalar_one().total_seconds()))
    assert delays == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert database.transact(send_notices, lambda taken: {}, most=10) == (0, {}), "it is not due"


def test_a_fifo_topic_gets_groups_and_its_own_duplicates_out(outbox: Outbox) -> None:
    attributes = {"FifoTopic": "true", "ContentBasedDeduplication": "false"}
    sns = outbox.aws.client("sns")
    outbox.topic_arn = sns.create_topic(Name="notices.fifo", Attributes=attributes)["TopicArn"]
    outbox.queue_url = subscribe(outbox.aws, outbox.topic_arn)
    outbox.database.transact(record_upload, replace(UPLOAD, video_id="카메라-1a2b3c4d"))
    outbox.database.transact(mark_failed, "u1", "r", failure_class="internal", message="A defect.")

    assert outbox.tick() == "2 notices sent."
    with outbox.database.engine.begin() as connection:  # as after a crash between SNS's answer and the commit
        connection.execute(sa.text("UPDATE capstone.outbox SET sent_at = NULL"))
    assert outbox.tick() == "2 notices sent."

    assert [each["kind"] for each in outbox.received()] == ["video.received", "video.failed"]


def test_what_was_sent_long_ago_is_forgotten(outbox: Outbox) -> None:
    for number in range(3):
        upload(outbox.database, number)
    outbox.tick()
    upload(outbox.database, 3)
    with outbox.database.engine.begin() as connection:
        old = "UPDATE capstone.outbox SET sent_at = now() - interval '29 days' WHERE video_id IN ('v0', 'v1')"
        connection.execute(sa.text(old))
        connection.execute(
            sa.text(
                "UPDATE capstone.outbox SET created_at = now() - interval '99 days' WHERE sent_at IS NULL"
            )
        )
    outbox.clock(3601)
    outbox.topic_arn = f"{outbox.topic_arn}-gone"
    outbox.tick()

    with outbox.database.engine.connect() as connection:
        left = connection.execute(sa.text("SELECT video_id FROM capstone.outbox ORDER BY 1")).scalars().all()
    assert left == ["v2", "v3"], "what is not sent stays, however old it is"


def test_a_failure_that_is_mended_is_followed_by_the_analysis(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(mark_running, "u1", "r1")
    assert database.transact(mark_failed, "u1", "r1", failure_class="worker-lost", message="Lost.")
    database.transact(requeue, "u1", "r1", "r2", "It is tried again.")
    database.transact(mark_running, "u1", "r2")
    publish(database, run_id="r2")
    assert notices(database) == ["video.received", "video.failed", "video.analyzed"]


def test_an_older_uploads_late_analysis_says_that_it_is_not_current(outbox: Outbox) -> None:
    outbox.database.transact(record_upload, UPLOAD)
    outbox.database.transact(
        record_upload, replace(UPLOAD, upload_id="u2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    )
    publish(outbox.database, [], analysis_id="a2", upload_id="u2")
    publish(outbox.database)
    outbox.tick()
    account = [(each["upload_id"], each["current"]) for each in outbox.received() if each["analysis_id"]]
    assert account == [("u2", True), ("u1", False)]


def test_an_upload_that_is_known_already_is_not_told_again(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(record_upload, UPLOAD)
    assert notices(database) == ["video.received"]
    assert count(database, "outbox") == 1
