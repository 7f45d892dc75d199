"""The local stack's stand-in for mail: a queue that is subscribed to the topic, and how to look into it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

INBOX_QUEUE = "capstone-alerts-inbox"
# SQS shows a message only by delivering it; others do not see it meanwhile.
_LOOK_S = 10
_BATCH = 10


@dataclass(frozen=True, slots=True)
class Received:
    """A notice as a subscriber gets it.

    Attributes:
        at: when it arrived.
        attributes: its message attributes, by which a subscription can filter.
    """

    message_id: str
    at: datetime
    subject: str
    body: str
    attributes: dict[str, str]


def look_into(sqs: SQSClient, url: str, *, limit: int = 1000) -> list[Received]:
    """Up to `limit` notices, oldest first; they stay in the queue."""
    found: dict[str, Received] = {}
    receipts = []
    while len(found) < limit:
        answer = sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=_BATCH,
            VisibilityTimeout=_LOOK_S,
            WaitTimeSeconds=0,
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        messages = answer.get("Messages", [])
        if not messages:
            break
        for message in messages:
            sent_ms = int(message["Attributes"]["SentTimestamp"])
            notice = _received(json.loads(message["Body"]), sent_ms)
            found[notice.message_id] = notice
            receipts.append(message["ReceiptHandle"])
    for receipt in receipts:
        with contextlib.suppress(Exception):  # one that was looked at for too long is visible already
            sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=receipt, VisibilityTimeout=0)
    return sorted(found.values(), key=lambda notice: (notice.at, notice.message_id))


def _received(envelope: dict[str, Any], sent_ms: int) -> Received:
    """What SNS wraps a notice in for SQS."""
    attributes = {name: str(each["Value"]) for name, each in envelope.get("MessageAttributes", {}).items()}
    return Received(
        envelope["MessageId"],
        datetime.fromtimestamp(sent_ms / 1000, UTC),
        envelope.get("Subject") or "",
        envelope["Message"],
        attributes,
    )
