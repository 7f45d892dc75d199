"""What the stages share at run time, opened on first use: settings, object store, event store, clients."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from capstone_dagster.catalog.metrics import (
    DATABASE_CONNECTION_FAILURES,
    S3_ACCESS_DENIED,
    TELEMETRY_DROPPED,
)
from capstone_dagster.clients import aws_client, on_forbidden
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.model_files import locate_model
from capstone_dagster.settings import Settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.objects import ObjectStore, open_object_store
from capstone_dagster.storage.written_objects import WrittenObjects
from capstone_dagster.traces.tracer import Tracer

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient


class Services:
    """One of each per process; nothing is connected before it is used."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        # Made at once: it duplicates standard output before anything redirects it.
        self.metrics = metrics or Metrics(settings)

    @cached_property
    def s3(self) -> S3Client:
        """The S3 client."""
        client = aws_client("s3")
        on_forbidden(client, lambda operation: self.metrics.add(S3_ACCESS_DENIED))
        return client

    @cached_property
    def objects(self) -> ObjectStore:
        """Derived objects, under CAPSTONE_DERIVED_URL."""
        return WrittenObjects(open_object_store(self.settings.required("derived_url"), lambda: self.s3))

    @cached_property
    def database(self) -> Database:
        """The event store, in PostgreSQL."""
        return Database(
            self.settings.event_store_url(),
            slow=_log_statement,
            unavailable=lambda error: self.metrics.add(DATABASE_CONNECTION_FAILURES),
        )

    @cached_property
    def sqs(self) -> SQSClient:
        """The SQS client."""
        return aws_client("sqs")

    @cached_property
    def logs(self) -> CloudWatchLogsClient:
        """The CloudWatch Logs client."""
        return aws_client("logs")

    @cached_property
    def tracer(self) -> Tracer:
        """Where every stage records how long it took."""
        return Tracer(
            "capstone",
            self.settings.environment,
            lost=lambda spans: self.metrics.add(TELEMETRY_DROPPED, spans, channel="traces"),
        )

    def model_path(self, model: str | None = None) -> Path:
        """The detection model's file: the one named, else CAPSTONE_MODEL; fetched first if need be."""
        cache = Path(self.settings.model_cache).expanduser()
        return locate_model(model or self.settings.model, cache=cache, s3=lambda: self.s3)


def _log_statement(statement: str, elapsed_s: float) -> None:
    logging.getLogger("capstone.storage").debug(
        f"A statement took {elapsed_s:.2f} s.",
        extra={
            "action": "database.statement",
            "statement": statement,
            "elapsed_s": round(elapsed_s, 3),
        },
    )
