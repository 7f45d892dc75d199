"""boto3 clients that give up within seconds: a tick is cut off after 60 s, and the next one tries again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sqs import SQSClient

_CONNECT_S, _READ_S = 3, 5


@overload
def brief_client(service: Literal["sns"], region: str | None = None) -> SNSClient: ...
@overload
def brief_client(service: Literal["sqs"], region: str | None = None) -> SQSClient: ...
def brief_client(service: str, region: str | None = None) -> Any:
    """A client that tries once, for some seconds.

    Args:
        region: in place of the environment's.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    return boto3.client(service, region_name=region, config=config)  # type: ignore[call-overload]
