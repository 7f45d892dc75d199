"""This project's own way of a video with `CAPSTONE_COMPUTE=batch`: upload, sensor, Batch job, events."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from batch_gpu.gpus import gpu_count
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
def test_uploads_become_events_by_jobs_on_the_gpu_queue(
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
        another = tmp_path / "another.mp4"
        another.write_bytes(clip.read_bytes() + bytes(1))  # other bytes, the same video
        videos = [submit_video(each, aws_client("s3"), settings).video_id for each in (clip, another)]
        database = Database(settings.event_store_url())

        def ended() -> list[dict[str, Any]]:
            rows = database.transact(current_status, *videos)
            return rows if [row["state"] in ("done", "failed") for row in rows] == [True, True] else []

        rows = wait_for("the analyses", ended, deadline_s=180)
        assert {row["state"] for row in rows} == {"done"}, rows
        assert len({row["run_id"] for row in rows}) == 2
        assert all(database.transact(current_events, video) for video in videos)
        database.close()

        # One, where the second run was launched while the first one's worker waited.
        job, *more = (job for job in servers[0].batch.jobs() if job["jobQueue"].endswith("/capstone-gpu"))
        assert len(more) <= 1
        lines = [json.loads(line) for line in servers[0].batch.log_lines(job["jobId"])]
        assert {"timestamp", "level", "component", "message"} <= set.intersection(
            *(set(line) for line in lines if "_aws" not in line)
        )
        assert stack.postgres.value("dagster", LIMIT, "gpu") == max(1, gpu_count()), "as many as the fake has"
