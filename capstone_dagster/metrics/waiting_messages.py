"""How many messages wait in the upload queue and in its dead-letter queue."""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from capstone_dagster.clients import TICK, aws_client

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

# A message that somebody has received and not deleted yet waits as well.
_WAITING = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]


@lru_cache(maxsize=8)
def queues_at(url: str) -> Queues:
    """The same for the same URL, because making a client takes some 50 ms."""
    return Queues(url)


class Queues:
    """The upload queue and the dead-letter queue that its redrive policy names.

    Methods raise botocore's errors.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def waiting(self) -> int:
        """Messages in the upload queue, those included that were received and not acknowledged yet."""
        return self._count(self._url)

    def dead_letters(self) -> int:
        """Messages in the dead-letter queue; 0 if there is none."""
        return 0 if self._dead_letter_url is None else self._count(self._dead_letter_url)

    def _count(self, url: str) -> int:
        answer = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=_WAITING)  # type: ignore[arg-type]
        return sum(int(number) for number in answer["Attributes"].values())

    @cached_property
    def _dead_letter_url(self) -> str | None:
        answer = self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=["RedrivePolicy"])
        policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy", "{}"))
        if "deadLetterTargetArn" not in policy:
            return None
        name = str(policy["deadLetterTargetArn"]).rpartition(":")[2]
        return self._client.get_queue_url(QueueName=name)["QueueUrl"]

    @cached_property
    def _client(self) -> SQSClient:
        return aws_client("sqs", TICK)
