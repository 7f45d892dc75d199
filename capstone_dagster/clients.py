"""boto3 clients made one way: bounded waits, a few retries, region and endpoint from the environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sqs import SQSClient


@overload
def aws_client(service: Literal["s3"]) -> S3Client: ...
@overload
def aws_client(service: Literal["sqs"]) -> SQSClient: ...
@overload
def aws_client(service: Literal["sns"]) -> SNSClient: ...
@overload
def aws_client(service: Literal["logs"]) -> CloudWatchLogsClient: ...
@overload
def aws_client(service: Literal["cloudwatch"]) -> CloudWatchClient: ...
def aws_client(service: str) -> Any:
    """A new client for one AWS service, configured by the `AWS_*` variables that boto3 reads.

    Clients are safe to share between threads; making one costs some 50 ms, so keep it.
    """
    import boto3
    from botocore.config import Config

    # SQS long polls hold the connection for up to 20 s, so the read time-out stays above that. Three
    # attempts bound the worst call at about 90 s, under any visibility time-out used here.
    config = Config(
        connect_timeout=5,
        read_timeout=25,
        max_pool_connections=32,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    return boto3.client(service, config=config)  # type: ignore[call-overload]


def on_forbidden(client: Any, tell: Callable[[str], None]) -> None:
    """Have `tell` called with the operation's name for each call that the service answers with 403."""

    def look(parsed: dict[str, Any], model: Any, **more: Any) -> None:
        if parsed.get("ResponseMetadata", {}).get("HTTPStatusCode") == 403:
            tell(str(model.name))

    client.meta.events.register("after-call", look)
