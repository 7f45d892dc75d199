"""The assets as Dagster runs them, over real S3 emulators, PostgreSQL, the embedded model and a real clip."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.intake.identity import identify
from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.intake.queue import ReceivedMessage
from capstone_dagster.intake.runs import NewUpload, run_request
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.event_store import EventStore
from capstone_dagster.storage.records import VideoUpload
from capstone_dagster.storage.sources import head_source
from tests.assets import recovery_job
from tests.conftest import Aws


@dataclass
class Pipeline:
    """Uploads and the runs that analyse them, without queue and daemon."""

    aws: Aws
    services: Services
    instance: dg.DagsterInstance
    results: list[dg.ExecuteInProcessResult] = field(default_factory=list)

    def upload(self, key: str, body: bytes) -> VideoUpload:
        s3 = self.aws.client("s3")
        s3.put_object(Bucket="capstone-raw", Key=key, Body=body)
        source = head_source(s3, "capstone-raw", key)
        upload = identify(AnalysisRequest("capstone-raw", key), source, self.services.settings)
        self.services.events.record_upload(upload)
        self.instance.add_dynamic_partitions("videos", [upload.video_id])
        return upload

    def configured(self, upload: VideoUpload, **asked: Any) -> dict[str, Any]:
        """The run configuration that the sensor gives a request for this upload."""
        return copy.deepcopy(dict(self._request(upload, **asked).run_config))

    def run(
        self,
        upload: VideoUpload,
        *,
        configured: bool = True,
        services: Services | None = None,
        **asked: Any,
    ) -> dg.ExecuteInProcessResult:
        """One run, configured as the sensor does it, or empty as from the UI."""
        request = self._request(upload, **asked)
        recovery_job.services.append(services or self.services)
        result = recovery_job.recoverable_job().execute_in_process(
            partition_key=upload.video_id,
            run_config=dict(request.run_config) if configured else {},
            tags=dict(request.tags) if configured else {},
            instance=self.instance,
            raise_on_error=False,
        )
        self.results.append(result)
        return result

    def _request(self, upload: VideoUpload, **asked: Any) -> dg.RunRequest:
        message = ReceivedMessage("m1", "", "", 0, 1)
        return run_request(
            NewUpload("k", upload, AnalysisRequest(upload.bucket, upload.key, **asked), message)
        )


@pytest.fixture
def pipeline(aws: Aws, event_store: EventStore) -> Iterator[Pipeline]:
    settings = read_settings(
        database_url=event_store.engine.url.render_as_string(hide_password=False),
        derived_url=aws.resources.derived_url,
        # One frame a second keeps a test at seconds; nothing here depends on how many there are.
        sample_fps=1.0,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        yield Pipeline(aws, Services(settings), instance)
