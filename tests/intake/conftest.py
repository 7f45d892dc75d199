"""The upload sensor with everything around it: real SQS, S3 and PostgreSQL, and Dagster's own instance."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.tags import RUN_KEY_TAG

from capstone_dagster.intake.runs import JOB_NAME
from capstone_dagster.intake.sensor import upload_sensor
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from tests.conftest import Aws
from tests.support.waiting import wait_for


@dataclass
class Intake:
    """The sensor with everything around it; `tick` evaluates it once as Dagster's daemon would."""

    aws: Aws
    services: Services
    instance: dg.DagsterInstance
    cursor: str | None = None
    requests: list[dg.RunRequest] = field(default_factory=list)

    def upload(self, key: str, body: bytes = b"video", **metadata: str) -> str:
        put = self.aws.client("s3").put_object(Bucket="capstone-raw", Key=key, Body=body, Metadata=metadata)
        return str(put["VersionId"])

    def send(self, message: object) -> None:
        body = message if isinstance(message, str) else json.dumps(message)
        self.aws.client("sqs").send_message(QueueUrl=self.aws.resources.queue_url, MessageBody=body)

    def redeliver_after_a_second(self) -> None:
        """Instead of three minutes: what is received and not acknowledged comes again soon."""
        self.aws.client("sqs").set_queue_attributes(
            QueueUrl=self.aws.resources.queue_url, Attributes={"VisibilityTimeout": "1"}
        )

    def tick(self, *, create_runs: bool = True) -> dg.SensorResult:
        """One tick; the runs it asks for are put on record, unless the daemon dies before that."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"services": self.services}
        )
        result = upload_sensor(context)
        assert isinstance(result, dg.SensorResult)
        if create_runs:
            self.cursor = result.cursor
            for added in result.dynamic_partitions_requests or []:
                self.instance.add_dynamic_partitions("videos", list(added.partition_keys))
            for request in result.run_requests or []:
                self.requests.append(request)
                self.record_run(request)
        return result

    def record_run(self, request: dg.RunRequest) -> None:
        self.instance.create_run_for_job(
            _job, status=dg.DagsterRunStatus.STARTED, tags={**request.tags, RUN_KEY_TAG: str(request.run_key)}
        )

    def ticks_until(self, what: str, reached: Any) -> None:
        """Tick until something holds; notifications of emulators arrive a moment after the upload."""

        def once() -> bool:
            self.tick()
            return bool(reached())

        wait_for(what, once)

    def messages(self, url: str | None = None) -> int:
        """How many messages the queue holds, those in flight included."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.aws.client("sqs").get_queue_attributes(
            QueueUrl=url or self.aws.resources.queue_url, AttributeNames=names
        )
        return sum(int(answer["Attributes"][name]) for name in names)

    def dead_letters(self) -> list[dict[str, Any]]:
        answer = self.aws.client("sqs").receive_message(
            QueueUrl=self.aws.resources.dead_letter_queue_url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
        )
        return list(answer.get("Messages", []))


@dg.job(name=JOB_NAME)
def _job() -> None:
    pass


@pytest.fixture
def intake(aws: Aws, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Intake]:
    url = database.engine.url.render_as_string(hide_password=False)
    settings = read_settings(
        queue_url=aws.resources.queue_url, raw_bucket="capstone-raw", database_url=url, poll_wait_s=0.0
    )
    with dg.DagsterInstance.ephemeral() as instance:
        yield Intake(aws, Services(settings), instance)
