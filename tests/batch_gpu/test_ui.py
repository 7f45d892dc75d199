"""Runs made as the UI makes them: materialisations, backfills, re-executions from failure, cancellations."""

from collections.abc import Mapping
from typing import Any

import pytest
from dagster import DagsterRun, RunsFilter
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_graphql.test.utils import execute_dagster_graphql

from batch_gpu.testing import Machines
from tests.batch_gpu.conftest import Cloud
from tests.support.waiting import wait_for

pytestmark = pytest.mark.live
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message stack }
  }
}
"""
REEXECUTE = """
mutation Again($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message stack }
  }
}
"""
BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message stack }
  }
}
"""
TERMINATE = """
mutation Terminate($run: String!, $policy: TerminateRunPolicy) {
  terminateRun(runId: $run, terminatePolicy: $policy) { __typename ... on TerminateRunFailure { message } }
}
"""


@pytest.fixture
def workspace(cloud: Cloud) -> WorkspaceProcessContext:
    # Without a queue a run is launched when it is made; the queue has a test of its own.
    cloud.configure(
        run_coordinator={"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}
    )
    return cloud.workspace()


def ask(workspace: WorkspaceProcessContext, query: str, **variables: Any) -> Mapping[str, Any]:
    answer = execute_dagster_graphql(workspace.create_request_context(), query, variables=variables)
    assert answer.errors is None, answer.errors
    [result] = answer.data.values()
    assert "Success" in result["__typename"], result.get("message")
    return dict(result)


def selector(job: str, *assets: str) -> dict[str, Any]:
    return {
        "repositoryLocationName": "project",
        "repositoryName": "__repository__",
        "jobName": job,
        **({"assetSelection": [{"path": [asset]} for asset in assets]} if assets else {}),
    }


def materialise(cloud: Cloud, workspace: WorkspaceProcessContext, *assets: str) -> DagsterRun:
    params = {
        "selector": selector("__ASSET_JOB", *assets),
        "mode": "default",
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "a"}]},
    }
    run_id = ask(workspace, LAUNCH, params=params)["run"]["runId"]
    run = cloud.instance.get_run_by_id(run_id)
    assert run is not None
    return run


def queue_of(cloud: Cloud, run: DagsterRun) -> str:
    [job] = [job for job in cloud.batch.jobs() if run.run_id in job["jobName"]]
    return str(job["jobQueue"]).rpartition("/")[2]


def test_a_run_takes_a_gpu_only_for_what_it_really_executes(
    cloud: Cloud, workspace: WorkspaceProcessContext
) -> None:
    both = materialise(cloud, workspace, "detections", "events")
    assert queue_of(cloud, both) == "gpu"
    cloud.until(both, "SUCCESS")

    events = materialise(cloud, workspace, "events")
    assert queue_of(cloud, events) == "cpu", "what needs the GPU is not selected"
    cloud.until(events, "SUCCESS")

    (cloud.home / "fail-thinking").touch()
    failed = materialise(cloud, workspace, "detections", "events")
    assert queue_of(cloud, failed) == "gpu"
    cloud.until(failed, "FAILURE")
    (cloud.home / "fail-thinking").unlink()
    again = {"parentRunId": failed.run_id, "strategy": "FROM_FAILURE"}
    repaired_id = ask(workspace, REEXECUTE, params=again)["run"]["runId"]
    repaired = cloud.instance.get_run_by_id(repaired_id)
    assert repaired is not None
    assert queue_of(cloud, repaired) == "cpu", "the GPU step is not executed again"
    tags = cloud.until(repaired, "SUCCESS").tags
    assert tags["batch_gpu/job_id"] != cloud.fresh(failed).tags["batch_gpu/job_id"], "its own, not inherited"
    looked = (cloud.home / "looked").read_text().split()
    assert looked == [both.run_id, failed.run_id]


def test_a_run_canceled_in_the_ui_before_it_began(cloud: Cloud, workspace: WorkspaceProcessContext) -> None:
    cloud.batch.set_machines("gpu", Machines(count=0))
    run = materialise(cloud, workspace, "detections")
    # Dagster lets a run that has not begun be canceled by force only, and does not tell the launcher.
    ask(workspace, TERMINATE, run=run.run_id, policy="MARK_AS_CANCELED_IMMEDIATELY")
    assert cloud.status(run) == "CANCELED"
    assert cloud.watch().ended == 1
    assert cloud.job()["status"] == "FAILED"
    assert cloud.watch().ended == 0


def test_a_run_canceled_in_the_ui_in_its_midst(cloud: Cloud, workspace: WorkspaceProcessContext) -> None:
    params = {"selector": selector("waits"), "mode": "default"}
    run_id = ask(workspace, LAUNCH, params=params)["run"]["runId"]
    run = cloud.instance.get_run_by_id(run_id)
    assert run is not None
    wait_for("the worker", (cloud.home / "endless").exists)
    ask(workspace, TERMINATE, run=run_id)
    cloud.until(run, "CANCELED")
    cloud.until_job("FAILED")


def test_a_backfill_of_events_takes_no_gpu(cloud: Cloud, workspace: WorkspaceProcessContext) -> None:
    import logging

    from dagster._daemon.backfill import execute_backfill_iteration

    params = {"assetSelection": [{"path": ["events"]}], "partitionNames": ["a", "b"], "title": "again"}
    ask(workspace, BACKFILL, params=params)
    logger = logging.getLogger("backfill")
    for _ in range(3):  # it launches a few runs at a time
        list(execute_backfill_iteration(workspace, logger))
    runs = cloud.instance.get_runs(RunsFilter())
    assert {run.tags["dagster/partition"] for run in runs} == {"a", "b"}
    assert {queue_of(cloud, run) for run in runs} == {"cpu"}
