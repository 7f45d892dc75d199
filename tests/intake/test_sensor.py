"""The sensor against real SQS, S3 and PostgreSQL: what is requested, when a message goes, what stays."""

from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg
import pytest
from botocore.exceptions import ClientError
from sqlalchemy.engine import make_url

from capstone_dagster.failures.left_messages import LEFT_MESSAGES
from capstone_dagster.failures.run_steps import pass_config
from capstone_dagster.intake.identity import video_id
from capstone_dagster.removal.retention import retention
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import DatabaseUnavailable
from capstone_dagster.storage.video_status import current_status, mark_failed
from capstone_dagster.storage.videos import latest_upload
from tests.intake.conftest import Intake
from tests.support.waiting import wait_for


def test_an_upload_becomes_one_run_and_its_message_goes_when_the_run_is_on_record(intake: Intake) -> None:
    intake.upload("gate/20250526_193726 정문.mp4", **{"video-id": "84"})

    intake.ticks_until("a run request", lambda: intake.requests)
    [request] = intake.requests
    upload = _upload(request)
    assert upload["key"] == "gate/20250526_193726 정문.mp4"
    # What Dagster shows in its list of runs, a line each, beside the partition.
    shown = {key: value for key, value in request.tags.items() if not key.startswith(".dagster/")}
    assert shown == {"capstone/external_id": "84", "capstone/camera": "gate"}
    assert request.tags[".dagster/capstone.s3_uri"] == "s3://capstone-raw/gate/20250526_193726 정문.mp4"
    assert request.partition_key == upload["video_id"] in intake.instance.get_dynamic_partitions("videos")
    assert request.run_key == upload["upload_id"][:32]
    assert intake.messages() >= 1  # never acknowledged in the tick that asks for the run

    intake.ticks_until("the message to go", lambda: intake.messages() == 0)
    assert len(intake.requests) == 1
    [status] = intake.services.database.transact(current_status, "84")
    assert (status["state"], status["upload_id"]) == ("queued", upload["upload_id"])


def test_s3_and_the_back_end_meet_in_one_run(intake: Intake) -> None:
    intake.upload("gate/a.mp4")
    intake.send({"bucket": "capstone-raw", "key": "gate/a.mp4", "video_id": 84})
    intake.send({"bucket": "capstone-raw", "key": "gate/a.mp4"})

    intake.ticks_until("all messages to go", lambda: intake.requests and intake.messages() == 0)

    assert len(intake.requests) == 1
    assert len(intake.services.database.transact(current_status, "84")) == 1


def test_a_tick_that_dies_before_its_runs_exist_loses_nothing(intake: Intake) -> None:
    intake.redeliver_after_a_second()
    intake.upload("gate/a.mp4")

    died = wait_for("a doomed tick", lambda: intake.tick(create_runs=False).run_requests)

    intake.ticks_until("the run after all", lambda: intake.requests and intake.messages() == 0)
    assert [request.run_key for request in intake.requests] == [died[0].run_key]


def test_another_upload_of_the_same_key_is_another_run(intake: Intake) -> None:
    for body in (b"one", b"two"):
        version = intake.upload("gate/a.mp4", body)
        intake.ticks_until(
            "its run",
            lambda version=version: any(
                _upload(request)["version_id"] == version for request in intake.requests
            ),
        )

    assert len({request.run_key for request in intake.requests}) == 2
    assert len({request.partition_key for request in intake.requests}) == 1


def test_forced_and_changed_requests_are_runs_of_their_own(intake: Intake) -> None:
    intake.upload("gate/a.mp4")
    plain = {"bucket": "capstone-raw", "key": "gate/a.mp4"}
    for extra in (
        {},
        {"sample_fps": 2},
        {"sample_fps": 2},
        {"force": True},
        {"force": True},
        {"priority": 7},
    ):
        intake.send({**plain, **extra})

    intake.ticks_until("all messages to go", lambda: intake.requests and intake.messages() == 0)

    configs = [pass_config(request.run_config) for request in intake.requests]
    assert sorted(
        (config["sample_fps"], config["nonce"] is not None) for config in configs if config["sample_fps"]
    ) == [(2.0, False)]
    assert sum(config["nonce"] is not None for config in configs) == 2
    assert len(intake.requests) == 4


def test_malformed_messages_go_to_the_dead_letters_with_the_reason(intake: Intake) -> None:
    intake.upload("gate/a.mp4")
    intake.send("not json")
    good = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}
    good["s3"] = {"bucket": {"name": "capstone-raw"}, "object": {"key": "gate/a.mp4"}}  # type: ignore[assignment]
    intake.send({"Records": [good, {"eventSource": "aws:s3"}]})

    intake.ticks_until("all messages to go", lambda: intake.requests and intake.messages() == 0)

    letters = {letter["Body"]: letter["MessageAttributes"] for letter in intake.dead_letters()}
    assert set(letters) == {"not json", '{"Records": [{"eventSource": "aws:s3"}]}'}
    assert letters["not json"]["reason"]["StringValue"].startswith("not JSON")
    assert len(intake.requests) == 1


def vanished(key: str) -> dict[str, Any]:
    """S3's notice of an object that is gone by now."""
    content = {"bucket": {"name": "capstone-raw"}, "object": {"key": key}}
    return {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": content}]}


def test_a_request_that_comes_before_its_object_waits_for_it(intake: Intake) -> None:
    wait_for("S3's own test event", lambda: (intake.tick(), intake.messages() == 0)[1])
    intake.redeliver_after_a_second()
    intake.send({"bucket": "capstone-raw", "key": "gate/a.mp4", "video_id": 84, "camera": "yard"})
    wait_for("the tick that sees it", lambda: "awaited" in str(intake.tick().skip_reason) or None)
    assert not intake.dead_letters()

    intake.upload("gate/a.mp4")
    intake.ticks_until("both messages to go", lambda: intake.requests and intake.messages() == 0)

    assert len(intake.requests) == 1
    video = intake.services.database.transact(latest_upload, video_id("capstone-raw", "gate/a.mp4"))
    assert video is not None
    assert (video.external_id, video.camera) == ("84", "yard")


def test_a_bucket_that_is_not_ours_is_refused_without_asking_s3(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake.services.s3, "head_object", lambda **_: pytest.fail("S3 was asked"))
    buckets = ("others", "Raw", "arn:aws:s3:us-east-1:1:accesspoint/x", "a..b", "a\0b")
    for bucket in buckets:
        intake.send({"bucket": bucket, "key": "gate/a.mp4"})
    intake.ticks_until("the messages to go", lambda: intake.messages() == 0)
    assert len(intake.dead_letters()) == len(buckets)
    assert not intake.requests


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"Service": "Amazon S3", "Event": "s3:TestEvent"}, id="test-event"),
        pytest.param({"bucket": "capstone-raw", "key": "notes.txt"}, id="no-video"),
        pytest.param(vanished("vanished.mp4"), id="vanished"),
    ],
)
def test_what_asks_for_nothing_is_acknowledged_at_once(intake: Intake, message: dict[str, Any]) -> None:
    wait_for("S3's own test event", lambda: (intake.tick(), intake.messages() == 0)[1])
    intake.send(message)

    result = wait_for(
        "the tick that sees it", lambda: (r := intake.tick()) and "received" in str(r.skip_reason) and r
    )

    assert intake.messages() == 0
    assert not intake.requests
    assert not intake.dead_letters()
    assert "1 acknowledged" in str(result.skip_reason)


def test_a_dead_database_keeps_messages_in_the_queue(intake: Intake) -> None:
    intake.upload("gate/a.mp4")
    settings = intake.services.settings.model_copy(
        update={"database_url": None, "postgres_host": "127.0.0.1", "postgres_port": 1}
    )
    broken = Intake(intake.aws, Services(settings), intake.instance)

    def dies() -> bool:
        try:
            broken.tick()
        except Exception as error:
            return "does not answer" in str(error)
        return False

    wait_for("a tick that meets the upload", dies)
    assert intake.messages() >= 1


def test_a_full_run_queue_leaves_messages_in_sqs_and_says_so(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake.send({"bucket": "capstone-raw", "key": "gate/a.mp4"})
    monkeypatch.setattr(intake.instance, "get_runs_count", lambda filters: 1001)

    result = intake.tick()

    assert "1001 runs wait, more than CAPSTONE_MAX_QUEUED_RUNS (1000)" in str(result.skip_reason)
    assert intake.messages() >= 1
    monkeypatch.undo()


def test_what_the_database_will_never_take_is_a_dead_letter_and_holds_nobody_up(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake.upload("gate/a.mp4")
    intake.upload("gate/b.mp4")
    intake.send({"bucket": "capstone-raw", "key": "gate/b.mp4", "video_id": "8\0004"})

    intake.ticks_until("all messages to go", lambda: len(intake.requests) == 2 and intake.messages() == 0)

    [letter] = intake.dead_letters()
    assert "NUL" in letter["MessageAttributes"]["reason"]["StringValue"]


def test_a_read_only_database_loses_nothing(intake: Intake) -> None:
    # What a fail-over looks like from here: it answers, and takes no writes for a while.
    intake.upload("gate/a.mp4")
    url = make_url(intake.services.settings.event_store_url())

    def read_only(state: str) -> None:
        admin = url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(
                f'ALTER DATABASE "{url.database}" SET default_transaction_read_only = {state}'  # type: ignore[arg-type]
            )
        intake.services.database.close()  # settings of a database hold for new connections

    read_only("on")
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            intake.tick()
    assert not intake.dead_letters()
    read_only("off")

    intake.ticks_until("its run after all", lambda: intake.requests and intake.messages() == 0)
    assert len(intake.requests) == 1


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ("embedded", True),  # the configured one
        ("yolo11n.pt", True),
        ("s3://models/team/new.pt", True),
        ("s3://models-of-others/new.pt", False),
        ("s3://elsewhere/evil.pt", False),
        ("/etc/model.pt", False),
        ("yolov8x.pt", False),
    ],
)
def test_a_message_names_only_models_that_are_allowed(intake: Intake, model: str, allowed: bool) -> None:
    settings = intake.services.settings.model_copy(
        update={"request_models": ("yolo11n.pt", "s3://models/"), "source_buckets": ("capstone-derived",)}
    )
    intake.services = Services(settings)
    intake.aws.client("s3").put_object(Bucket="capstone-derived", Key="a.mp4", Body=b"video")
    intake.send({"bucket": "capstone-derived", "key": "a.mp4", "model": model})

    intake.ticks_until("the message to go", lambda: intake.messages() == 0)

    assert len(intake.requests) == allowed
    assert [letter["MessageAttributes"]["reason"]["StringValue"] for letter in intake.dead_letters()] == (
        []
        if allowed
        else [f"model {model!r} is neither CAPSTONE_MODEL nor allowed by CAPSTONE_REQUEST_MODELS"]
    )


def test_forbidden_objects_stay_in_the_queue(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither emulator knows IAM; the refusal is S3's own answer all the same.
    intake.redeliver_after_a_second()
    intake.upload("gate/a.mp4")

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadObject")

    def left() -> bool:
        result = intake.tick()
        return "1 left" in str(result.skip_reason)

    with monkeypatch.context() as forbidden:
        forbidden.setattr(intake.services.s3, "head_object", refuse)
        wait_for("the upload's tick", left)
        assert intake.messages() >= 1
        assert not intake.requests
    noted = LEFT_MESSAGES.read(intake.instance)  # for notices: no tick and no run fails of it
    assert noted is not None
    assert (noted.count, noted.failure) == (1, "source-forbidden")

    intake.ticks_until("the run, once it is allowed", lambda: intake.requests and intake.messages() == 0)
    assert len(intake.requests) == 1


@pytest.mark.parametrize(
    "said",
    [
        {"StorageClass": "GLACIER"},
        {"StorageClass": "DEEP_ARCHIVE", "Restore": 'ongoing-request="true"'},
        {"StorageClass": "INTELLIGENT_TIERING", "ArchiveStatus": "ARCHIVE_ACCESS"},
    ],
)
def test_an_archived_upload_is_no_run_until_it_is_restored(
    intake: Intake, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    # No emulator archives; these are the fields by which S3 says so.
    head = intake.services.s3.head_object
    with monkeypatch.context() as archived:
        archived.setattr(intake.services.s3, "head_object", lambda **asked: {**head(**asked), **said})
        version = intake.upload("gate/a.mp4")
        intake.ticks_until("its message to go", lambda: _states(intake) and intake.messages() == 0)
    assert not intake.requests
    assert _states(intake) == [("failed", "source-archived")]

    restored = {**said, "Restore": 'ongoing-request="false", expiry-date="Fri, 21 Dec 2029 00:00:00 GMT"'}
    monkeypatch.setattr(intake.services.s3, "head_object", lambda **asked: {**head(**asked), **restored})
    record = {"eventSource": "aws:s3", "eventName": "ObjectRestore:Completed"}
    place = {"bucket": {"name": "capstone-raw"}, "object": {"key": "gate/a.mp4", "versionId": version}}
    intake.send({"Records": [{**record, "s3": place}]})
    intake.ticks_until("its run", lambda: intake.requests and intake.messages() == 0)


def _states(intake: Intake) -> list[tuple[str, str]]:
    rows = intake.services.database.transact(current_status)
    return [(row["state"], row["failure_class"]) for row in rows]


def test_pruning_old_partitions_runs_nothing_again(intake: Intake) -> None:
    intake.upload("gate/a.mp4")
    intake.ticks_until("its run", lambda: intake.requests and intake.messages() == 0)
    [request] = intake.requests
    upload = _upload(request)

    def prune(days: float, **config: Any) -> int:
        # A negative retention stands for time that went by.
        settings = intake.services.settings.model_copy(update={"partition_retention_days": days})
        result = retention.execute_in_process(
            run_config={"ops": {"remove_what_is_old": {"config": config}}},
            resources={"services": Services(settings)},
            instance=intake.instance,
        )
        [output] = [each for each in result.all_events if each.is_successful_output]
        return int(str(output.step_output_data.metadata["partitions"].value))

    assert prune(-1) == 0  # its run is not over
    intake.services.database.transact(
        mark_failed, upload["upload_id"], "r", failure_class="internal", message="x"
    )
    assert prune(1) == 0  # too young
    assert prune(-1, dry_run=True) == 1
    assert intake.instance.get_dynamic_partitions("videos") == [upload["video_id"]]
    assert prune(-1) == 1
    assert intake.instance.get_dynamic_partitions("videos") == []

    intake.send({"bucket": "capstone-raw", "key": "gate/a.mp4"})
    wait_for("the late duplicate to go", lambda: (intake.tick(), intake.messages() == 0)[1])
    assert len(intake.requests) == 1


def _upload(request: dg.RunRequest) -> dict[str, Any]:
    return dict(pass_config(request.run_config)["upload"])


def test_what_asks_for_nothing_does_not_end_the_wait_for_an_upload(intake: Intake) -> None:
    wait_for("S3's own test event", lambda: (intake.tick(), intake.messages() == 0)[1])
    update = {"poll_wait_s": 20.0, "source_buckets": ("capstone-derived",)}
    intake.services = Services(intake.services.settings.model_copy(update=update))
    # In a bucket that announces nothing, so that only the message below speaks of it.
    intake.aws.client("s3").put_object(Bucket="capstone-derived", Key="gate/a.mp4", Body=b"video")
    intake.send({"Event": "s3:TestEvent"})
    queue = intake.services.sqs
    calls = 0

    def receive(**how: Any) -> Any:
        # The first call takes the test event, the second finds nothing more, the third is the further wait.
        nonlocal calls
        calls += 1
        if calls == 3:
            intake.send({"bucket": "capstone-derived", "key": "gate/a.mp4"})
        return queue.receive_message(**how)

    intake.services.__dict__["sqs"] = SimpleNamespace(
        receive_message=receive,
        delete_message_batch=queue.delete_message_batch,
        get_queue_attributes=queue.get_queue_attributes,
    )

    result = intake.tick()

    assert len(result.run_requests or []) == 1
