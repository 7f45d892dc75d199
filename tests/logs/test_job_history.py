"""Logs of jobs: each start and end once, in the group of the jobs' history, whatever CloudWatch does."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from batch_gpu.history import JobChange, changes_between, new_changes, report_changes
from batch_gpu.jobs import JOB_ID_TAG, JOB_NAME_TAG
from capstone_dagster.catalog.log_groups import BATCH_JOB
from capstone_dagster.logs.job_history import write_job_history
from tests.conftest import Aws
from tests.support.dagster_home import dagster_home

MS = 1_795_000_000_000
EMPTY = dg.JobDefinition(name="analyze_upload", graph_def=dg.GraphDefinition(name="empty"))


def job(status: str, run_id: str = "r", **more: Any) -> dict[str, Any]:
    """A job as DescribeJobs answers."""
    times = {} if status == "RUNNABLE" else {"startedAt": MS}
    ended = {"stoppedAt": MS + 12_345} if status in ("SUCCEEDED", "FAILED") else {}
    return {
        "jobId": "job-1",
        "jobQueue": "arn:aws:batch:ap-northeast-2:1:job-queue/capstone-gpu",
        "status": status,
        "tags": {"dagster/run_id": run_id},
        "container": {
            "resourceRequirements": [{"type": "GPU", "value": "1"}, {"type": "MEMORY", "value": "14000"}],
            "logStreamName": "capstone-gpu/default/1",
            **more,
        },
        **times,
        **ended,
    }


@pytest.mark.parametrize(
    ("known", "status", "changes"),
    [
        (None, "RUNNABLE", []),
        (None, "RUNNING", ["started"]),
        ("STARTING", "RUNNING", ["started"]),
        ("RUNNING", "RUNNING", []),
        ("RUNNING", "SUCCEEDED", ["succeeded"]),
        ("RUNNABLE", "FAILED", ["started", "failed"]),
        (None, "SUCCEEDED", ["started", "succeeded"]),
        ("SUCCEEDED", "SUCCEEDED", []),
    ],
)
def test_a_job_s_start_and_end_are_reported_once(known: str | None, status: str, changes: list[str]) -> None:
    assert [change.what for change in changes_between(known, job(status))] == changes


class Batch:
    """What the history asks of the launcher."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.api = SimpleNamespace(
            describe=lambda ids: {each: self.jobs[each] for each in ids if each in self.jobs}
        )


def test_the_history_of_a_job_goes_on_after_its_run(tmp_path: Path) -> None:
    batch: Any = Batch()
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        run = instance.create_run_for_job(EMPTY)
        name = {JOB_NAME_TAG: f"capstone-{run.run_id}-1", JOB_ID_TAG: "job-1"}
        instance.add_run_tags(run.run_id, name)
        later = run_s = instance.get_run_records()[0].update_timestamp.timestamp()
        seen, cursor = [], None
        for status in ("RUNNABLE", "RUNNING", "RUNNING", "SUCCEEDED", "SUCCEEDED"):
            batch.jobs["job-1"] = job(status, run.run_id)
            changes, cursor = new_changes(instance, batch, cursor, later)
            seen += [(change.what, change.run_id) for change in changes]
            later += 1000  # the run itself is not looked at any more

    assert seen == [("started", run.run_id), ("succeeded", run.run_id)]
    assert json.loads(cursor or "")["at"] > run_s


def test_the_lines_of_the_history_name_run_video_reason_and_resources(aws: Aws, tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        run = instance.create_run_for_job(EMPTY, tags={".dagster/capstone.video_id": "gate-0a1b2c3d"})
        killed = job("FAILED", run.run_id, exitCode=137, reason="OutOfMemoryError")
        changes = [JobChange("started", killed), JobChange("failed", killed)]
        for _ in range(2):  # the stream is there the second time
            write_job_history(lambda: aws.client("logs"), BATCH_JOB.name, instance, changes)

    events = aws.client("logs").filter_log_events(logGroupName=BATCH_JOB.name)["events"]
    lines = [json.loads(event["message"]) for event in events]
    started, failed = lines[0], lines[-1]
    assert (started["action"], started["timestamp"]) == ("job.started", "2026-11-18T11:06:40.000Z")
    assert (failed["action"], failed["level"], failed["elapsed_s"]) == ("job.failed", "ERROR", 12.345)
    assert (failed["run_id"], failed["video_id"]) == (run.run_id, "gate-0a1b2c3d")
    assert (failed["exit_code"], failed["reason"]) == (137, "OutOfMemoryError")
    assert (failed["gpus"], failed["memory_mib"], failed["job_queue"]) == (1, 14000, "capstone-gpu")


def test_a_history_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("CloudWatch does not answer.")

    batch: Any = Batch()
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        run = instance.create_run_for_job(EMPTY)
        instance.add_run_tags(run.run_id, {JOB_NAME_TAG: f"capstone-{run.run_id}-1", JOB_ID_TAG: "job-1"})
        batch.jobs["job-1"] = job("RUNNING", run.run_id)
        context = dg.build_sensor_context(instance=instance)
        report_changes(context, batch, refuse)

        assert json.loads(context.cursor or "")["jobs"] == {"job-1": "RUNNING"}
