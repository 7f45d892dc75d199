"""S3, SQS, SNS and CloudWatch Logs on this machine: the emulator process, and the resources made in it.

`create_resources` is plain boto3 and is the one place that declares the names and attributes which the
resources have in the cloud too; it works on every emulator. The emulator here is `ministack`: objects are
on disk as soon as `put_object` answers, everything else (queues and their messages, topics, bucket
settings, alarms, logs) is written when it is stopped. So a stop, Ctrl-C, and even a SIGKILL of the stack
lose nothing, because the emulator's warden still stops it in order. Only when the emulator itself is
killed outright (out of memory, power) everything but the objects is as at its last orderly stop: messages
sent since are lost, messages consumed since come back, `create_resources` makes the rest anew.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstone_dagster.alerts.inbox import INBOX_QUEUE
from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.local.processes import LOOPBACK, ChildProcess, Command, free_port, start

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

REGION: "BucketLocationConstraintType" = "ap-northeast-2"
RAW_BUCKET = "capstone-raw"
DERIVED_BUCKET = "capstone-derived"
UPLOAD_QUEUE = "capstone-uploads"
DEAD_LETTER_QUEUE = "capstone-uploads-dlq"
ALERT_TOPIC = "capstone-alerts"
NOTICE_TOPIC = "capstone-notices"
RETENTION_S = 14 * 24 * 3600  # SQS's longest: a weekend of outage and a week to notice it
INBOX_RETENTION_S = 3 * 24 * 3600  # all of it is read at each look
UPLOAD_QUEUE_ATTRIBUTES: "Mapping[QueueAttributeNameType, str]" = {
    # A sensor tick (60 s limit) + submitting its runs + one interval, with room; short enough that what a
    # killed daemon held comes back within minutes.
    "VisibilityTimeout": "180",
    "MessageRetentionPeriod": str(RETENTION_S),
    "ReceiveMessageWaitTimeSeconds": "20",  # long polling, SQS's maximum
}
# A message is received again each time a daemon crashes or a tick times out; malformed ones do not wait
# for this, intake moves them itself. Twenty crashes in a row are a fault of the message, not of the day.
MAX_RECEIVE_COUNT = 20
NOTIFICATION_ID = "uploads"

# Both emulators accept any credentials; these cannot be mistaken for real ones.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
SERVICES = ("s3", "sqs", "sns", "monitoring", "logs", "batch", "sts")
# What clients see of the port is the one they asked on; what the emulator files its queues under is this
# one, so that they are found again when a later start gets another port.
EMULATOR_NOMINAL_PORT = 4566
START_DEADLINE_S = 30.0


@dataclass(frozen=True)
class AwsResources:
    """The resources as settings name them."""

    queue_url: str
    dead_letter_queue_url: str
    raw_bucket: str
    derived_url: str
    alert_topic_arn: str
    alert_inbox_url: str
    notice_topic_arn: str


@dataclass(frozen=True)
class AwsEmulator:
    """A running emulator."""

    process: ChildProcess
    endpoint_url: str


@contextmanager
def ministack_server(
    state: Path, log: Path | None = None, port: int | None = None, keep_open: Sequence[int] = ()
) -> Iterator[AwsEmulator]:
    """Run the emulator with its state below `state`, on `port` or a free one."""
    state = state.resolve()
    for folder in (state / "services", state / "objects"):
        folder.mkdir(parents=True, exist_ok=True)
    port = free_port(port)
    process = start(_ministack(state, log or state / "aws.log", port), keep_open)
    emulator = AwsEmulator(process, f"http://{LOOPBACK}:{port}")
    try:
        process.wait_until(lambda: _unhealthy(emulator.endpoint_url), START_DEADLINE_S)
        yield emulator
    finally:
        process.stop()


def aws_environment(endpoint_url: str) -> dict[str, str]:
    """What makes any boto3 in a child process talk to the emulator and to nothing else."""
    return {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        # The user's own profiles and roles must not leak in, nor may boto3 look for an instance role.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client(service: str, endpoint_url: str) -> Any:
    """A boto3 client for the emulator, whatever AWS settings this process has."""
    from botocore.config import Config

    # `proxies={}`: a company's HTTP proxy cannot reach a loopback port of this machine.
    return _session().client(
        service,  # type: ignore[call-overload]
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        aws_session_token="",
        config=Config(proxies={}, s3={"addressing_style": "path"}),
    )


def create_resources(endpoint_url: str) -> AwsResources:
    """Make what is missing and correct what differs, touching nothing else: fit for every start."""
    s3: S3Client = client("s3", endpoint_url)
    sqs: SQSClient = client("sqs", endpoint_url)
    for bucket in (RAW_BUCKET, DERIVED_BUCKET):
        _ensure_bucket(s3, bucket)
    s3.put_bucket_versioning(Bucket=RAW_BUCKET, VersioningConfiguration={"Status": "Enabled"})
    dead_letter_url = _ensure_queue(sqs, DEAD_LETTER_QUEUE, {"MessageRetentionPeriod": str(RETENTION_S)})
    dead_letter_arn = _queue_arn(sqs, dead_letter_url)
    redrive = {"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": MAX_RECEIVE_COUNT}
    queue_url = _ensure_queue(
        sqs,
        UPLOAD_QUEUE,
        {
            **UPLOAD_QUEUE_ATTRIBUTES,
            "Policy": json.dumps(_allow_notifications(dead_letter_arn)),
            "RedrivePolicy": json.dumps(redrive),
        },
    )
    _ensure_notification(s3, _queue_arn(sqs, queue_url))
    sns: SNSClient = client("sns", endpoint_url)
    topic_arn = sns.create_topic(Name=ALERT_TOPIC)["TopicArn"]
    # There is no mail here: `capstone alerts` reads notices from this queue.
    inbox_url = _ensure_queue(sqs, INBOX_QUEUE, {"MessageRetentionPeriod": str(INBOX_RETENTION_S)})
    _ensure_subscription(sns, topic_arn, _queue_arn(sqs, inbox_url))
    _ensure_log_groups(client("logs", endpoint_url))
    return AwsResources(
        queue_url=queue_url,
        dead_letter_queue_url=dead_letter_url,
        raw_bucket=RAW_BUCKET,
        derived_url=f"s3://{DERIVED_BUCKET}",
        alert_topic_arn=topic_arn,
        alert_inbox_url=inbox_url,
        notice_topic_arn=sns.create_topic(Name=NOTICE_TOPIC)["TopicArn"],
    )


@cache
def _session() -> "Session":
    """One session that knows nothing of the user's profiles: one that is set but missing fails everything.

    Kept, because a session reads its service descriptions anew: 0.15 s for each client.
    """
    import boto3
    import botocore.session

    nothing, no_file = (None, None, None, None), (None, None, os.devnull, None)
    variables = {"profile": nothing, "config_file": no_file, "credentials_file": no_file}
    return boto3.session.Session(botocore_session=botocore.session.Session(session_vars=variables))


def _ministack(state: Path, log: Path, port: int) -> Command:
    return Command(
        name="AWS emulator",
        # Its own `ministack` command is this plus a pid file in the shared temporary folder.
        argv=[
            *(sys.executable, "-P", "-m", "hypercorn", "ministack.app:app", "--workers", "0"),
            *("--bind", f"{LOOPBACK}:{port}", "--keep-alive", "75", "--graceful-timeout", "2"),
        ],
        log=log,
        environment={
            "PATH": os.defpath,
            "HOME": str(state),
            "PYTHONUNBUFFERED": "1",
            "GATEWAY_PORT": str(EMULATOR_NOMINAL_PORT),
            # Presigned addresses are verified, against these.
            **CREDENTIALS,
            "SERVICES": ",".join(SERVICES),
            "MINISTACK_REGION": REGION,
            "PERSIST_STATE": "1",
            "STATE_DIR": str(state / "services"),
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(state / "objects"),
            # Listeners and a Docker clean-up that come with services not used here.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "DOCKER_HOST": f"unix://{state}/no-docker.sock",
        },
        cwd=state,
        # Messages are written to disk during this stop: 100,000 of them take about 2 s.
        grace_s=30.0,
    )


def _unhealthy(endpoint_url: str) -> str | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{endpoint_url}/_ministack/ready", timeout=5):
            return None
    except (urllib.error.URLError, OSError) as error:
        return str(error)


def _ensure_bucket(s3: "S3Client", bucket: str) -> None:
    # S3 answers "already owned by you" as an error everywhere except in us-east-1.
    if bucket not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})


def _ensure_queue(sqs: "SQSClient", name: str, attributes: "Mapping[QueueAttributeNameType, str]") -> str:
    # Made without attributes, then given them: CreateQueue refuses a queue whose attributes differ.
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes=dict(attributes))
    return url


def _queue_arn(sqs: "SQSClient", url: str) -> str:
    return sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]


def _allow_notifications(dead_letter_arn: str) -> dict[str, Any]:
    """The queue's policy: S3, on behalf of the raw bucket of this account, may send."""
    *service, account, _ = dead_letter_arn.split(":")
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "UploadsFromTheRawBucket",
                "Effect": "Allow",
                "Principal": {"Service": "s3.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": ":".join([*service, account, UPLOAD_QUEUE]),
                "Condition": {
                    "ArnLike": {"aws:SourceArn": f"arn:aws:s3:::{RAW_BUCKET}"},
                    "StringEquals": {"aws:SourceAccount": account},
                },
            }
        ],
    }


def _ensure_subscription(sns: "SNSClient", topic_arn: str, queue_arn: str) -> None:
    # AWS answers with the subscription that is there; an emulator may make a second one.
    present = sns.list_subscriptions_by_topic(TopicArn=topic_arn)["Subscriptions"]
    if queue_arn not in {each.get("Endpoint") for each in present}:
        sns.subscribe(TopicArn=topic_arn, Protocol="sqs", Endpoint=queue_arn)


def _ensure_log_groups(logs: "CloudWatchLogsClient") -> None:
    pages = logs.get_paginator("describe_log_groups").paginate()
    present = {each["logGroupName"] for page in pages for each in page["logGroups"]}
    for group in LOG_GROUPS:
        if group.name not in present:
            logs.create_log_group(logGroupName=group.name)
        logs.put_retention_policy(logGroupName=group.name, retentionInDays=group.retention_days)


def _ensure_notification(s3: "S3Client", queue_arn: str) -> None:
    present = s3.get_bucket_notification_configuration(Bucket=RAW_BUCKET).get("QueueConfigurations", [])
    if any(each["QueueArn"] == queue_arn and each.get("Id") == NOTIFICATION_ID for each in present):
        return  # setting it again would send another s3:TestEvent at every start
    s3.put_bucket_notification_configuration(
        Bucket=RAW_BUCKET,
        NotificationConfiguration={
            "QueueConfigurations": [
                {"Id": NOTIFICATION_ID, "QueueArn": queue_arn, "Events": ["s3:ObjectCreated:*"]}
            ]
        },
    )
