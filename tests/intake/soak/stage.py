"""What a campaign plays on: an emulator's queue and bucket, two fresh databases, a home for Dagster."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
from sqlalchemy.engine import make_url

from capstone_dagster.local.aws import AwsResources, aws_environment, client
from capstone_dagster.local.postgres import PostgresServer
from capstone_dagster.storage.database import Database
from capstone_dagster.testing.servers import own_database
from tests.intake.soak.variants import VARIABLE

ROOT = Path(__file__).parents[3]
INSTANCE = """
storage:
  postgres:
    postgres_url: {env: DAGSTER_POSTGRES_URL}
# Runs are queued, and nobody takes them out of the queue: they are recorded, not launched.
run_coordinator:
  module: dagster._core.run_coordinator.queued_run_coordinator
  class: QueuedRunCoordinator
telemetry: {enabled: false}
"""
# No crash makes a message exceed this; the few that S3 refuses are given up at the end.
PATIENCE = 1000


@dataclass(frozen=True)
class Stage:
    """Where everything is; `variables` is the complete environment of the daemon's process."""

    endpoint_url: str
    resources: AwsResources
    instance: dg.DagsterInstance
    events: Database
    dagster_database: str
    home: Path
    variables: dict[str, str]

    def client(self, service: str) -> Any:
        return client(service, self.endpoint_url)

    def set_queue(self, *, visibility_s: int | None = None, patience: int | None = None) -> None:
        """Change how long a received message is hidden, or after how many deliveries it is given up."""
        sqs = self.client("sqs")
        changed: dict[str, str] = {}
        if visibility_s is not None:
            changed["VisibilityTimeout"] = str(visibility_s)
        if patience is not None:
            answer = sqs.get_queue_attributes(
                QueueUrl=self.resources.dead_letter_queue_url, AttributeNames=["QueueArn"]
            )
            policy = {"deadLetterTargetArn": answer["Attributes"]["QueueArn"], "maxReceiveCount": patience}
            changed["RedrivePolicy"] = json.dumps(policy)
        sqs.set_queue_attributes(QueueUrl=self.resources.queue_url, Attributes=changed)


@contextmanager
def set_stage(
    endpoint_url: str, resources: AwsResources, postgres: PostgresServer, home: Path, variant: str
) -> Iterator[Stage]:
    """Databases and settings for one campaign; the emulator holds the resources and nothing else."""
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text(INSTANCE)
    # S3's own notifications would come beside those that the schedule sends.
    client("s3", endpoint_url).put_bucket_notification_configuration(
        Bucket=resources.raw_bucket, NotificationConfiguration={}
    )
    with _database(postgres) as dagster_database, _database(postgres) as event_database:
        dagster_url = make_url(dagster_database).set(drivername="postgresql+psycopg2")
        events_url = make_url(event_database).set(drivername="postgresql+psycopg")
        variables = {
            **aws_environment(endpoint_url),
            "PATH": os.defpath,
            "HOME": str(home),
            "NO_PROXY": "127.0.0.1,localhost",
            "DAGSTER_HOME": str(home),
            "DAGSTER_POSTGRES_URL": dagster_url.render_as_string(hide_password=False),
            "CAPSTONE_DATABASE_URL": events_url.render_as_string(hide_password=False),
            "CAPSTONE_QUEUE_URL": resources.queue_url,
            "CAPSTONE_RAW_BUCKET": resources.raw_bucket,
            "CAPSTONE_DERIVED_URL": resources.derived_url,
            "CAPSTONE_POLL_WAIT_S": "0",
            # Some requests name objects that never come: they are acknowledged at once.
            "CAPSTONE_REQUEST_PATIENCE_S": "0",
            # Back-pressure has tests of its own; here nobody would ever take a run out of the queue.
            "CAPSTONE_MAX_QUEUED_RUNS": "1000000",
            VARIABLE: variant,
        }
        events = Database(variables["CAPSTONE_DATABASE_URL"])
        events.migrate()
        with (
            contextlib.closing(events),
            _environment(DAGSTER_POSTGRES_URL=variables["DAGSTER_POSTGRES_URL"]),
            dg.DagsterInstance.from_config(str(home)) as instance,
        ):
            stage = Stage(endpoint_url, resources, instance, events, dagster_database, home, variables)
            stage.set_queue(patience=PATIENCE)
            yield stage


@contextmanager
def _database(postgres: PostgresServer) -> Iterator[str]:
    """A fresh database, as a URL that libpq reads."""
    with own_database(postgres) as created:
        url = created.replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            # The daemon is killed, not the server: commits hold without waiting for the disk.
            connection.execute(f'ALTER DATABASE "{make_url(url).database}" SET synchronous_commit = off')
        yield url


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Dagster reads its storage's address from this process's environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
