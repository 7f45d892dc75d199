"""This project's own way of a video with `CAPSTONE_COMPUTE=batch`: upload, sensor, Batch job, events."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from batch_gpu.testing import FakeBatchServer
from capstone_dagster.clients import aws_client
from capstone_dagster.local.cloud import fake_batch
from capstone_dagster.local.demo import prepare
from capstone_dagster.local.stack import LocalStack, join_environment, local_stack
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.video_status import current_status
from capstone_dagster.submit import submit_video
from tests.support.waiting import wait_for

LIMIT = 'SELECT "limit" FROM concurrency_limits WHERE concurrency_key = %s'
pytestmark = pytest.mark.live


@pytest.mark.timeout(300)
def test_an_upload_becomes_events_by_one_job_on_the_gpu_queue(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers: list[FakeBatchServer] = []

    with ExitStack() as running:

        def go_to_the_cloud(stack: LocalStack) -> None:
            prepare(stack)
            servers.append(running.enter_context(fake_batch(stack)))

        stack = running.enter_context(
            local_stack(tmp_path / "state", webserver_port=None, before_dagster=go_to_the_cloud)
        )
        for name, value in join_environment(stack.environment).items():
            monkeypatch.setenv(name, value)
        settings = read_settings()
        submission = submit_video(clip, aws_client("s3"), settings)
        database = Database(settings.event_store_url())

        def ended() -> dict[str, Any] | None:
            rows = database.transact(current_status, submission.video_id)
            return next((row for row in rows if row["state"] in ("done", "failed")), None)

        row = wait_for("the analysis", ended, deadline_s=180)
        assert row["state"] == "done", row["message"]
        assert database.transact(current_events, submission.video_id)
        database.close()

        [job] = servers[0].batch.jobs()
        assert job["jobQueue"].endswith("/capstone-gpu")
        assert servers[0].batch.calls["SubmitJob"] == 1
        lines = [json.loads(line) for line in servers[0].batch.log_lines(job["jobId"])]
        assert {"timestamp", "level", "component", "message"} <= set.intersection(
            *(set(line) for line in lines if "_aws" not in line)
        )
        assert stack.postgres.value("dagster", LIMIT, "gpu") == 1000, "AWS Batch has the machines"
