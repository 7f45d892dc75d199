"""The AWS resources are those of the cloud on every emulator, and survive what is promised."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import psutil  # type: ignore[import-untyped]
import pytest

from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.local.aws import (
    ALERT_TOPIC,
    DEAD_LETTER_QUEUE,
    DERIVED_BUCKET,
    NOTICE_TOPIC,
    RAW_BUCKET,
    REGION,
    AwsResources,
    client,
    create_resources,
    ministack_server,
)
from tests.support.waiting import wait_for

KEY = "hall camera/Gäste + 1.mp4"


@pytest.fixture(scope="module")
def resources(aws_endpoint: str) -> AwsResources:
    create_resources(aws_endpoint)
    return create_resources(aws_endpoint)  # the second start must find, not fail


def receive(sqs: Any, queue_url: str, deadline_s: float = 30.0) -> list[dict[str, Any]]:
    """The next messages of the queue, deleted from it."""

    def poll() -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = sqs.receive_message(
            QueueUrl=queue_url, WaitTimeSeconds=1, MaxNumberOfMessages=10
        ).get("Messages", [])
        return found or None

    messages = wait_for("a message", poll, deadline_s)
    for message in messages:
        sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
    return messages


def test_the_queue_has_the_attributes_it_has_in_the_cloud(aws_endpoint: str, resources: AwsResources) -> None:
    sqs = client("sqs", aws_endpoint)
    queue = sqs.get_queue_attributes(QueueUrl=resources.queue_url, AttributeNames=["All"])["Attributes"]
    dead = sqs.get_queue_attributes(QueueUrl=resources.dead_letter_queue_url, AttributeNames=["All"])
    redrive = json.loads(queue["RedrivePolicy"])

    assert resources.queue_url.startswith(aws_endpoint)
    assert (queue["VisibilityTimeout"], queue["ReceiveMessageWaitTimeSeconds"]) == ("180", "20")
    assert queue["MessageRetentionPeriod"] == dead["Attributes"]["MessageRetentionPeriod"] == "1209600"
    assert int(redrive["maxReceiveCount"]) == 20
    assert redrive["deadLetterTargetArn"] == dead["Attributes"]["QueueArn"]
    assert redrive["deadLetterTargetArn"].split(":")[3::2] == [REGION, DEAD_LETTER_QUEUE]


def test_only_the_raw_bucket_may_send_to_the_queue(aws_endpoint: str, resources: AwsResources) -> None:
    attributes = client("sqs", aws_endpoint).get_queue_attributes(
        QueueUrl=resources.queue_url, AttributeNames=["Policy", "QueueArn"]
    )["Attributes"]
    (statement,) = json.loads(attributes["Policy"])["Statement"]

    assert statement["Principal"] == {"Service": "s3.amazonaws.com"}
    assert statement["Resource"] == attributes["QueueArn"]
    assert statement["Condition"]["ArnLike"] == {"aws:SourceArn": f"arn:aws:s3:::{RAW_BUCKET}"}


def test_the_raw_bucket_is_versioned_and_notifies_the_queue(
    aws_endpoint: str, resources: AwsResources
) -> None:
    s3 = client("s3", aws_endpoint)
    (notification,) = s3.get_bucket_notification_configuration(Bucket=RAW_BUCKET)["QueueConfigurations"]

    assert {each["Name"] for each in s3.list_buckets()["Buckets"]} == {RAW_BUCKET, DERIVED_BUCKET}
    assert s3.get_bucket_versioning(Bucket=RAW_BUCKET)["Status"] == "Enabled"
    assert s3.get_bucket_location(Bucket=DERIVED_BUCKET)["LocationConstraint"] == REGION
    assert notification["Events"] == ["s3:ObjectCreated:*"]
    assert resources.derived_url == f"s3://{DERIVED_BUCKET}"


def test_the_topics_exist(aws_endpoint: str, resources: AwsResources) -> None:
    topics = client("sns", aws_endpoint).list_topics()["Topics"]
    assert {each["TopicArn"] for each in topics} == {resources.alert_topic_arn, resources.notice_topic_arn}
    assert resources.alert_topic_arn.endswith(f":{ALERT_TOPIC}")
    assert resources.notice_topic_arn.endswith(f":{NOTICE_TOPIC}")


def test_the_log_groups_keep_lines_as_long_as_in_the_cloud(
    aws_endpoint: str, resources: AwsResources
) -> None:
    groups = client("logs", aws_endpoint).describe_log_groups()["logGroups"]
    assert {each["logGroupName"]: each["retentionInDays"] for each in groups} == {
        each.name: each.retention_days for each in LOG_GROUPS
    }


def test_an_upload_is_announced_by_s3_itself(aws_endpoint: str, resources: AwsResources) -> None:
    """First the subscription's test event (one, though the resources were made twice), then the upload."""
    client("s3", aws_endpoint).put_object(Bucket=RAW_BUCKET, Key=KEY, Body=b"film")
    sqs = client("sqs", aws_endpoint)
    bodies: list[dict[str, Any]] = []

    def announced() -> bool:
        bodies.extend(json.loads(each["Body"]) for each in receive(sqs, resources.queue_url))
        return any("Records" in body for body in bodies)

    wait_for("the upload's notification", announced)
    assert [body["Event"] for body in bodies if "Records" not in body] == ["s3:TestEvent"]
    (record,) = next(body for body in bodies if "Records" in body)["Records"]
    assert record["eventName"].startswith("ObjectCreated:")
    assert record["s3"]["bucket"]["name"] == RAW_BUCKET
    assert record["s3"]["object"]["key"] != KEY, "S3 encodes keys"
    assert unquote_plus(record["s3"]["object"]["key"]) == KEY


def test_a_restart_keeps_objects_versions_and_messages(tmp_path: Path) -> None:
    with ministack_server(tmp_path) as emulator:
        before = create_resources(emulator.endpoint_url)
        s3 = client("s3", emulator.endpoint_url)
        versions = [
            s3.put_object(Bucket=RAW_BUCKET, Key=KEY, Body=body)["VersionId"] for body in (b"1", b"2")
        ]
        client("sqs", emulator.endpoint_url).purge_queue(QueueUrl=before.queue_url)
        client("sqs", emulator.endpoint_url).send_message(QueueUrl=before.queue_url, MessageBody="kept")

    with ministack_server(tmp_path) as emulator:
        after = create_resources(emulator.endpoint_url)
        s3 = client("s3", emulator.endpoint_url)
        bodies = [
            s3.get_object(Bucket=RAW_BUCKET, Key=KEY, VersionId=version)["Body"].read()
            for version in versions
        ]
        messages = receive(client("sqs", emulator.endpoint_url), after.queue_url)

        assert bodies == [b"1", b"2"]
        # One message: making the resources again announced nothing anew.
        assert [message["Body"] for message in messages] == ["kept"]
        # The port is another one, and so is the URL: it is the address on which the emulator was asked.
        assert after.queue_url.startswith(emulator.endpoint_url)


def test_of_a_killed_emulator_objects_survive_and_messages_do_not(tmp_path: Path) -> None:
    """What aws.py promises for the one case that no orderly stop covers."""
    with ministack_server(tmp_path) as emulator:
        resources = create_resources(emulator.endpoint_url)
        sqs = client("sqs", emulator.endpoint_url)
        sqs.purge_queue(QueueUrl=resources.queue_url)
        sqs.send_message(QueueUrl=resources.queue_url, MessageBody="old")

    with ministack_server(tmp_path) as emulator:
        resources = create_resources(emulator.endpoint_url)
        sqs = client("sqs", emulator.endpoint_url)
        assert [each["Body"] for each in receive(sqs, resources.queue_url)] == ["old"]
        client("s3", emulator.endpoint_url).put_object(Bucket=RAW_BUCKET, Key=KEY, Body=b"film")
        psutil.Process(emulator.process.pid).kill()
        wait_for("the end of the emulator", lambda: not emulator.process.running)

    with ministack_server(tmp_path) as emulator:
        resources = create_resources(emulator.endpoint_url)
        s3 = client("s3", emulator.endpoint_url)
        assert s3.get_object(Bucket=RAW_BUCKET, Key=KEY)["Body"].read() == b"film"
        assert s3.get_bucket_versioning(Bucket=RAW_BUCKET)["Status"] == "Enabled"
        # The upload's notification is lost; the message that was consumed after the last stop is back.
        messages = receive(client("sqs", emulator.endpoint_url), resources.queue_url)
        assert [each["Body"] for each in messages] == ["old"]
