"""SNS topics: hands over messages, ten in a request, within seconds, whatever SNS does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from capstone_dagster.clients import CREDENTIALS, FORBIDDEN, TICK, aws_client

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sns.type_defs import PublishBatchRequestEntryTypeDef

# The most that PublishBatch takes.
BATCH = 10


class NotSent(Exception):
    """SNS took nothing; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Message:
    """What SNS is given.

    Attributes:
        attributes: by which a subscription can filter.
        group: in a FIFO topic, messages of one group keep their order, and those of one `id` arrive once.
    """

    id: str
    group: str
    body: str
    attributes: Mapping[str, str]
    subject: str = ""


class Topic:
    """A topic that people, tools or other systems subscribe to. Its client is made when it is first used.

    Args:
        arn: its ARN, whose region is the one that is asked.
        setting: the variable that names it.
    """

    def __init__(self, arn: str, setting: str) -> None:
        self.arn = arn
        self._setting = setting
        self._client: SNSClient | None = None

    def publish(self, messages: Sequence[Message]) -> dict[int, str]:
        """Hand over up to ten messages.

        Returns:
            Those that SNS refused while it took others: their place in `messages` → the reason.

        Raises:
            NotSent: it took none, because of the topic, a permission or the network.
        """
        try:
            if self._client is None:
                self._client = aws_client("sns", TICK, self.arn.split(":")[3])
            entries = [self._entry(place, message) for place, message in enumerate(messages)]
            answer = self._client.publish_batch(TopicArn=self.arn, PublishBatchRequestEntries=entries)
        except Exception as error:  # a client can fail in every way, when made and when used
            raise NotSent(self._in_words(error)) from error
        return {
            int(each["Id"]): f"SNS rejected it: {each['Code']} ({each.get('Message', '').rstrip('.')})."
            for each in answer.get("Failed", [])
        }

    def _entry(self, place: int, message: Message) -> PublishBatchRequestEntryTypeDef:
        entry: PublishBatchRequestEntryTypeDef = {
            "Id": str(place),
            "Message": message.body,
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value}
                for name, value in message.attributes.items()
            },
        }
        if message.subject:
            entry["Subject"] = message.subject
        if self.arn.endswith(".fifo"):
            entry["MessageGroupId"], entry["MessageDeduplicationId"] = message.group, message.id
        return entry

    def _in_words(self, error: Exception) -> str:
        """Why SNS took nothing, and what to do."""
        kind = type(error).__name__
        if isinstance(error, ClientError):
            details = error.response.get("Error", {})
            code, reason = details.get("Code", ""), details.get("Message", "").rstrip(".")
            if code in ("NotFound", "NotFoundException"):
                remedy = f"{self._setting} should name a topic that exists."
            elif code in FORBIDDEN or code in CREDENTIALS:
                remedy = "Grant this role sns:Publish on it."
            else:
                remedy = "It is tried again."
            return f"SNS rejected {self.arn}: {code} ({reason}). {remedy}"
        if isinstance(error, BotoCoreError):
            return (
                f"SNS cannot be reached for {self.arn}: {kind} ({str(error).rstrip('.')}). Check the AWS_* "
                "variables and the network; it is tried again."
            )
        return f"SNS could not be given a notice for {self.arn}: {kind} ({error}). It is tried again."
