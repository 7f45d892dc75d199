"""The upload queue: receive, acknowledge, reject to the dead-letter queue with the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from capstone_dagster.clients import dead_letter_url, waiting_messages
from capstone_dagster.settings import ConfigurationError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

# SQS's own limits: ten messages a call.
_BATCH = 10
# How long a look at the dead letters hides them: long enough to list and redrive a thousand.
_LOOK_S = 60
# A long poll, however short, asks all of SQS's servers; one of 0 s asks only some, and answers empty although
# messages wait (SQS developer guide, "Amazon SQS short and long polling"). Even so, one proves nothing.
_LONG_POLL_S = 1
_EMPTY_ANSWERS = 3


class QueueUnavailable(Exception):
    """SQS does not answer, or refuses; messages stay where they are."""

    failure_class = "storage-unavailable"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up: why, where it came from, and its text.

    Attributes:
        reason: what intake found wrong with it; None if SQS moved it after too many deliveries.
        source_message_id: of the message it was, or was a part of; None as above.
    """

    message_id: str
    body: str
    receipt: str
    sent_ms: int
    reason: str | None
    source_message_id: str | None


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """One delivery of one message.

    Attributes:
        receipt: what acknowledging this delivery takes; good until the visibility time-out ends.
        sent_ms: when it entered the queue, milliseconds since 1970.
        receive_count: deliveries so far, this one included.
        request_id: of the request that it was received by, as AWS knows it.
    """

    message_id: str
    body: str
    receipt: str
    sent_ms: int
    receive_count: int
    request_id: str = ""


class UploadQueue:
    """One SQS queue and the dead-letter queue that its redrive policy names.

    Every method raises :class:`QueueUnavailable` when SQS does not do what it is asked.
    """

    def __init__(self, client: SQSClient, url: str) -> None:
        self._client = client
        self.url = url

    def receive(self, *, wait_s: float, most: int = _BATCH) -> list[ReceivedMessage]:
        """Up to `most` messages, ten at once, waiting for a first one for at most `wait_s` (0–20) seconds."""
        try:
            answer = self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=min(most, _BATCH),
                WaitTimeSeconds=round(wait_s),
                MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
            )
        except (ClientError, BotoCoreError) as error:
            raise self._unavailable("receive from", error) from error
        return [
            ReceivedMessage(
                message_id=message["MessageId"],
                body=message["Body"],
                receipt=message["ReceiptHandle"],
                sent_ms=int(message.get("Attributes", {}).get("SentTimestamp", 0)),
                receive_count=int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
                request_id=str(answer.get("ResponseMetadata", {}).get("RequestId", "")),
            )
            for message in answer.get("Messages", [])
        ]

    def acknowledge(self, receipts: Sequence[str]) -> int:
        """Delete deliveries from the queue; returns how many SQS confirmed.

        A receipt that has expired is not confirmed: its message comes again and is found to be known.
        """
        confirmed = 0
        for start in range(0, len(receipts), _BATCH):
            entries = [
                {"Id": str(index), "ReceiptHandle": receipt}
                for index, receipt in enumerate(receipts[start : start + _BATCH])
            ]
            try:
                answer = self._client.delete_message_batch(QueueUrl=self.url, Entries=entries)  # type: ignore[arg-type]
            except (ClientError, BotoCoreError) as error:
                raise self._unavailable("delete from", error) from error
            confirmed += len(answer.get("Successful", []))
        return confirmed

    def reject(self, body: str, reason: str, message_id: str) -> None:
        """Copy a malformed message, or a part of one, to the dead-letter queue with the reason.

        Args:
            message_id: of the message that the body came in.
        """
        # Attributes must not be empty nor hold control characters; with the body they share 256 KiB.
        shown = "".join(c if c.isprintable() else " " for c in reason)[:1024] or "malformed"
        attributes = {"reason": shown, "source_message_id": message_id}
        try:
            self._client.send_message(
                QueueUrl=self.dead_letter_url,
                MessageBody=body,
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
                },
            )
        except (ClientError, BotoCoreError) as error:
            raise self._unavailable("send to the dead-letter queue of", error) from error

    def dead_letters(self, *, limit: int = 1000) -> list[DeadLetter]:
        """Up to `limit` messages of the dead-letter queue, which stay there.

        SQS shows a message only by delivering it: each is hidden from other readers for a minute. Fewer than
        `dead_letter_count` are found where another reader hides some.
        """
        found: dict[str, DeadLetter] = {}
        counted, empty = self.dead_letter_count(), 0
        try:
            while len(found) < limit and empty < (1 if len(found) >= counted else _EMPTY_ANSWERS):
                answer = self._client.receive_message(
                    QueueUrl=self.dead_letter_url,
                    MaxNumberOfMessages=_BATCH,
                    VisibilityTimeout=_LOOK_S,
                    WaitTimeSeconds=_LONG_POLL_S,
                    MessageAttributeNames=["All"],
                    MessageSystemAttributeNames=["SentTimestamp"],
                )
                # One that is delivered a second time counts like none: the rest is hidden, or there is none.
                messages = [each for each in answer.get("Messages", []) if each["MessageId"] not in found]
                empty = 0 if messages else empty + 1
                for message in messages:
                    given = message.get("MessageAttributes", {})
                    attributes = {name: value.get("StringValue") for name, value in given.items()}
                    found[message["MessageId"]] = DeadLetter(
                        message_id=message["MessageId"],
                        body=message["Body"],
                        receipt=message["ReceiptHandle"],
                        sent_ms=int(message.get("Attributes", {}).get("SentTimestamp", 0)),
                        reason=attributes.get("reason"),
                        source_message_id=attributes.get("source_message_id"),
                    )
        except (ClientError, BotoCoreError) as error:
            raise self._unavailable("read the dead letters of", error) from error
        return sorted(found.values(), key=lambda letter: (letter.sent_ms, letter.message_id))[:limit]

    def dead_letter_count(self) -> int:
        """About how many messages the dead-letter queue holds, those that a reader hides included."""
        try:
            return waiting_messages(self._client, self.dead_letter_url)
        except (ClientError, BotoCoreError) as error:
            raise self._unavailable("count the dead letters of", error) from error

    def put_back(self, letters: Sequence[DeadLetter]) -> None:
        """Let dead letters be seen by others at once, after a look at them."""
        for letter in letters:
            # One that was looked at for too long is visible already.
            with contextlib.suppress(ClientError, BotoCoreError):
                self._client.change_message_visibility(
                    QueueUrl=self.dead_letter_url, ReceiptHandle=letter.receipt, VisibilityTimeout=0
                )

    def redrive(self, letter: DeadLetter) -> None:
        """Send a dead letter to the upload queue again, then delete it from the dead ones.

        A crash in between leaves it in both, which is one delivery more, and no run more.
        """
        try:
            self._client.send_message(QueueUrl=self.url, MessageBody=letter.body)
            self._client.delete_message(QueueUrl=self.dead_letter_url, ReceiptHandle=letter.receipt)
        except (ClientError, BotoCoreError) as error:
            raise self._unavailable("redrive a dead letter to", error) from error

    @cached_property
    def dead_letter_url(self) -> str:
        """URL of the dead-letter queue.

        Raises:
            ConfigurationError: the queue has none.
        """
        try:
            url = dead_letter_url(self._client, self.url)
        except (ClientError, BotoCoreError) as error:
            raise self._unavailable("read the redrive policy of", error) from error
        if url is None:
            raise ConfigurationError(
                f"The queue {self.url} has no redrive policy, so there is nowhere to put malformed "
                "messages. Give it one with a dead-letter queue."
            )
        return url

    def _unavailable(self, action: str, error: Exception) -> QueueUnavailable:
        return QueueUnavailable(
            f"SQS failed to {action} {self.url}: {error}. Messages stay in the queue. Check "
            "CAPSTONE_QUEUE_URL, AWS_REGION, AWS_ENDPOINT_URL and this role's sqs: permissions."
        )
