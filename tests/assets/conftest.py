"""The assets as Dagster runs them, over real S3 emulators, PostgreSQL, the embedded model and a real clip."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest

from capstone_dagster import testing
from capstone_dagster.services import Services
from capstone_dagster.settings import Settings, read_settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.video_status import current_status
from tests.assets import recovery_job
from tests.conftest import Aws


@dataclass
class Pipeline(testing.Pipeline):
    """Runs the assets in a job that can be re-executed."""

    def job(self, services: Services) -> dg.JobDefinition:
        recovery_job.services.append(services)
        return recovery_job.recoverable_job()

    def status(self, upload: VideoUpload) -> dict[str, Any]:
        """The upload's row of `current_status`."""
        rows = self.services.database.transact(current_status, upload.video_id)
        return next(row for row in rows if row["upload_id"] == upload.upload_id)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """What the one failed step of a run said."""
    [failure] = result.get_step_failure_events()
    failed = failure.step_failure_data.user_failure_data
    assert failed is not None
    return str(failed.description)


@pytest.fixture
def capstone_settings(aws: Aws, database: Database) -> Settings:
    return read_settings(
        database_url=database.engine.url.render_as_string(hide_password=False),
        derived_url=aws.resources.derived_url,
        # One frame a second keeps a test at seconds; nothing here depends on how many there are.
        sample_fps=1.0,
    )


@pytest.fixture
def pipeline(aws: Aws, services: Services) -> Iterator[Pipeline]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Pipeline(aws, services, instance)
