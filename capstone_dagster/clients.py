"""boto3 clients made one way: bounded waits, a few retries, region and endpoint from the environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sqs import SQSClient

# Codes of errors: a permission is missing. HeadObject has no body, so S3 gives the bare status there.
FORBIDDEN = frozenset(
    {
        "403",
        "AccessDenied",
        "AccessDeniedException",
        "AllAccessDisabled",
        "AuthorizationError",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
    }
)
# The caller is not known, or not any more.
CREDENTIALS = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"}
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one answer may take, and how often a client asks."""

    read_s: float
    attempts: int


# SQS long polls hold the connection for up to 20 s. Three attempts bound the worst call at about 90 s, under
# any visibility time-out used here.
WORK = Patience(25.0, 3)
# A tick is cut off after 60 s, and what it decided would be decided again: the next tick tries again instead.
TICK = Patience(5.0, 1)
# Somebody waits in front of a terminal.
COMMAND = Patience(10.0, 2)


@overload
def aws_client(service: Literal["s3"], patience: Patience = ..., region: str | None = ...) -> S3Client: ...
@overload
def aws_client(service: Literal["sqs"], patience: Patience = ..., region: str | None = ...) -> SQSClient: ...
@overload
def aws_client(service: Literal["sns"], patience: Patience = ..., region: str | None = ...) -> SNSClient: ...
@overload
def aws_client(
    service: Literal["logs"], patience: Patience = ..., region: str | None = ...
) -> CloudWatchLogsClient: ...
@overload
def aws_client(
    service: Literal["cloudwatch"], patience: Patience = ..., region: str | None = ...
) -> CloudWatchClient: ...
def aws_client(service: str, patience: Patience = WORK, region: str | None = None) -> Any:
    """A new client for one AWS service, configured by the `AWS_*` variables that boto3 reads.

    Clients are safe to share between threads; making one costs some 50 ms, so keep it.

    Args:
        region: in place of the environment's.
    """
    return _client(service, patience, region)


def signing_client() -> S3Client:
    """An S3 client for addresses that a browser loads: they name the bucket's region.

    The global name, which boto3 signs by default, answers for a new bucket with a redirect. Browsers do not
    follow one in a CORS preflight.
    """
    client: S3Client = _client(
        "s3", COMMAND, None, signature_version="s3v4", s3={"addressing_style": "virtual"}
    )
    return client


def _client(service: str, patience: Patience, region: str | None, **signing: Any) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=min(5.0, patience.read_s),
        read_timeout=patience.read_s,
        max_pool_connections=32,
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        **signing,
    )
    return boto3.client(service, region_name=region, config=config)  # type: ignore[call-overload]


def on_forbidden(client: Any, report: Callable[[str], None]) -> None:
    """Have `report` called with the operation's name for each call that the service answers with 403."""

    def look(parsed: dict[str, Any], model: Any, **more: Any) -> None:
        if parsed.get("ResponseMetadata", {}).get("HTTPStatusCode") == 403:
            report(str(model.name))

    client.meta.events.register("after-call", look)


def error_code(error: ClientError) -> str:
    """The service's own name of an error; empty if it gave none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def waiting_messages(client: SQSClient, url: str) -> int:
    """About how many messages a queue holds, those included that were received and not deleted yet."""
    counted = client.get_queue_attributes(
        QueueUrl=url,
        AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
    )
    return sum(int(number) for number in counted["Attributes"].values())


def dead_letter_url(client: SQSClient, url: str) -> str | None:
    """URL of the dead-letter queue that a queue's redrive policy names; None if it has no such policy."""
    answer = client.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
    policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy", "{}"))
    if "deadLetterTargetArn" not in policy:
        return None
    name = str(policy["deadLetterTargetArn"]).rpartition(":")[2]
    return client.get_queue_url(QueueName=name)["QueueUrl"]
