"""Sends notices to SNS, ten in a request, within a time limit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capstone_dagster.alerts.sending import NotSent, not_sent, sns_client
from capstone_dagster.outbox.message import attributes, body
from capstone_dagster.storage.outbox import Notice

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_sns.type_defs import PublishBatchRequestEntryTypeDef

__all__ = ["BATCH", "NotSent", "NoticeTopic"]

# The most that PublishBatch takes.
BATCH = 10
_LONGEST_GROUP = 128


class NoticeTopic:
    """The SNS topic that other systems subscribe to.

    Args:
        arn: its ARN, whose region is the one that is asked. Ordered and de-duplicated by SNS if it is a
            FIFO topic.
    """

    def __init__(self, arn: str) -> None:
        self.arn = arn
        self._client: SNSClient | None = None

    def publish(self, notices: Sequence[Notice]) -> dict[int, str]:
        """Hand over up to ten notices.

        Returns:
            Those that SNS refused while it took others: ids to reasons.

        Raises:
            NotSent: it took none, because of the topic, a permission or the network.
        """
        try:
            if self._client is None:
                self._client = sns_client(self.arn.split(":")[3])
            answer = self._client.publish_batch(
                TopicArn=self.arn, PublishBatchRequestEntries=[self._entry(each) for each in notices]
            )
        except Exception as error:  # a client can fail in many ways, when made and when used
            raise not_sent(error, self.arn, "CAPSTONE_NOTICE_TOPIC_ARN") from error
        return {
            int(each["Id"]): f"SNS rejected it: {each['Code']} ({each.get('Message', '').rstrip('.')})."
            for each in answer.get("Failed", [])
        }

    def _entry(self, notice: Notice) -> PublishBatchRequestEntryTypeDef:
        entry: PublishBatchRequestEntryTypeDef = {
            "Id": str(notice.notice_id),
            "Message": body(notice),
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value}
                for name, value in attributes(notice).items()
            },
        }
        if self.arn.endswith(".fifo"):
            entry["MessageGroupId"] = _group(notice.video_id)
            entry["MessageDeduplicationId"] = str(notice.notice_id)
        return entry


def _group(video_id: str) -> str:
    """A video's group in a FIFO topic: its id, unless that has characters that SNS rejects."""
    if video_id.isascii() and len(video_id) <= _LONGEST_GROUP:
        return video_id
    return hashlib.sha256(video_id.encode()).hexdigest()
