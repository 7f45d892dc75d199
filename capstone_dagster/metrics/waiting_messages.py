"""How many messages wait in the upload queue and in its dead-letter queue."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from capstone_dagster.clients import TICK, aws_client, dead_letter_url, waiting_messages

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


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
        return waiting_messages(self._client, self._url)

    def dead_letters(self) -> int:
        """Messages in the dead-letter queue; 0 if there is none."""
        return 0 if self._dead_letter_url is None else waiting_messages(self._client, self._dead_letter_url)

    @cached_property
    def _dead_letter_url(self) -> str | None:
        return dead_letter_url(self._client, self._url)

    @cached_property
    def _client(self) -> SQSClient:
        return aws_client("sqs", TICK)
