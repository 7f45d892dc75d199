"""An AWS service as telemetry's outlet: its client, how long it is waited for, and when it is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from capstone_dagster.logs.shipping.refusals import Refusal

Service = Literal["logs", "cloudwatch"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the shipper waits, in seconds.

    Attributes:
        idle: between looks at the spool.
        metrics: between requests for metrics, which are billed by the request.
        first_retry, last_retry: after throttling and outages, doubling from the first to the last, half of it
            by chance.
        refused: after what only a person can mend.
        report: between counts of what was dropped.
        connect, read: before an answer of CloudWatch counts as lost.
    """

    idle: float = 1.0
    metrics: float = 10.0
    first_retry: float = 1.0
    last_retry: float = 60.0
    refused: float = 60.0
    report: float = 60.0
    connect: float = 3.0
    read: float = 10.0


class Outlet:
    """One of AWS's services: its client, made when needed and anew when it was of no use; its back-off."""

    def __init__(self, service: Service, pace: Pace, make: Callable[[Service], Any] | None = None) -> None:
        self.words = "CloudWatch Logs" if service == "logs" else "CloudWatch"
        self.trouble: str | None = None
        self.retry_at = 0.0
        self._service: Service = service
        self._make = make or (lambda service: _client(service, pace))
        self._pace = pace
        self._client: Any = None
        self._failures = 0

    def client(self) -> Any:
        if self._client is None:
            self._client = self._make(self._service)
        return self._client

    def rests(self) -> bool:
        return time.monotonic() < self.retry_at

    def succeed(self) -> None:
        self._failures = 0
        self.retry_at = 0.0

    def fail(self, refusal: Refusal) -> None:
        longest = min(self._pace.last_retry, self._pace.first_retry * 2**self._failures)
        self._failures = min(self._failures + 1, 30)
        if refusal.kind == "unusable":
            self._client = None
            longest = self._pace.refused
        self.retry_at = time.monotonic() + longest * random.uniform(0.5, 1.0)


def _client(service: Service, pace: Pace) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=pace.connect,
        read_timeout=pace.read,
        retries={"total_max_attempts": 1},  # what is retried, and when, is decided here
        disable_request_compression=True,
    )
    # A session of its own: what an earlier one found of credentials is forgotten with it.
    return boto3.session.Session().client(service, config=config)
