"""Handing notices to SNS, within seconds, whatever SNS does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstone_dagster.alerts.wording import Message

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sns.type_defs import MessageAttributeValueTypeDef

# A tick is cut off after 60 s, and what it decided would be decided again: one try of a few seconds, and the
# next tick tries again.
_CONNECT_S, _READ_S = 3, 5


class NotSent(Exception):
    """SNS did not take a notice; the message says why, and what to do."""


class Topic:
    """The SNS topic that people and their tools subscribe to.

    Args:
        arn: its ARN, whose region is the one that is asked.
    """

    def __init__(self, arn: str) -> None:
        self.arn = arn
        self._client: SNSClient | None = None

    def publish(self, message: Message) -> None:
        """Hand one notice over.

        Raises:
            NotSent: whatever went wrong.
        """
        attributes: dict[str, MessageAttributeValueTypeDef] = {
            name: {"DataType": "String", "StringValue": value} for name, value in message.attributes.items()
        }
        more: dict[str, str] = {}
        if self.arn.endswith(".fifo"):
            incident = message.attributes["incident"]
            more = {"MessageGroupId": incident, "MessageDeduplicationId": _distinct(message)}
        try:
            if self._client is None:
                self._client = sns_client(self.arn.split(":")[3])
            self._client.publish(
                TopicArn=self.arn,
                Subject=message.subject,
                Message=message.body,
                MessageAttributes=attributes,
                **more,
            )
        except Exception as error:  # a client can fail in every way, when made and when used
            raise not_sent(error, self.arn) from error


def sns_client(region: str) -> SNSClient:
    """A client that gives up within seconds, for sensors."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    return boto3.client("sns", region_name=region, config=config)


def _distinct(message: Message) -> str:
    import hashlib

    return hashlib.sha256(f"{message.subject}\n{message.body}".encode()).hexdigest()


def not_sent(error: Exception, arn: str, setting: str = "CAPSTONE_ALERT_TOPIC_ARN") -> NotSent:
    """What a call to SNS ended with, in a sentence.

    Args:
        setting: the variable that names the topic.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        answer = error.response.get("Error", {}).get("Message", "")
        if code in ("NotFound", "NotFoundException"):
            remedy = f"{setting} should name a topic that exists."
        elif "Access" in code or "Authorization" in code or "Token" in code:
            remedy = "Grant this role sns:Publish on it."
        else:
            remedy = "It is tried again."
        return NotSent(f"SNS rejected {arn}: {code} ({answer.rstrip('.')}). {remedy}")
    kind = type(error).__name__
    if isinstance(error, BotoCoreError):
        return NotSent(
            f"SNS cannot be reached for {arn}: {kind} ({str(error).rstrip('.')}). Check the AWS_* "
            "variables and the network; it is tried again."
        )
    return NotSent(f"SNS could not be given a notice for {arn}: {kind} ({error}). It is tried again.")
