"""Dagster's own web server and daemon as processes, the fake Batch behind them: nothing is done by hand."""

import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from dagster import DagsterRun, RunsFilter

from batch_gpu.testing import Machines
from capstone_dagster.local.dagster_services import DagsterServices, start_dagster
from capstone_dagster.local.processes import free_port
from tests.batch_gpu.conftest import PROJECT, ROOT, Cloud
from tests.batch_gpu.test_ui import LAUNCH, TERMINATE, selector
from tests.support.waiting import scaled, wait_for

pytestmark = pytest.mark.live


@pytest.fixture
def dagster(cloud: Cloud) -> Iterator[DagsterServices]:
    workspace = cloud.home / "workspace.yaml"
    location = {"module_name": PROJECT, "location_name": "project", "working_directory": str(ROOT)}
    workspace.write_text(json.dumps({"load_from": [{"python_module": location}]}))
    services = start_dagster(workspace, os.environ, cloud.home / "logs", free_port())
    yield services
    services.stop()


def post(dagster: DagsterServices, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{dagster.url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=scaled(60)) as answer:
        [result] = json.load(answer)["data"].values()
    assert "Success" in result["__typename"], result
    return dict(result)


def launch(cloud: Cloud, dagster: DagsterServices, job: str) -> DagsterRun:
    params = {"selector": selector(job), "mode": "default"}
    run = cloud.instance.get_run_by_id(post(dagster, LAUNCH, params=params)["run"]["runId"])
    assert run is not None
    return run


def worker_of(cloud: Cloud, run: DagsterRun) -> None:
    said = cloud.home / "endless"
    wait_for("the worker", lambda: said.exists() and said.read_text().startswith(run.run_id))


def test_from_the_button_to_the_end_and_through_a_lost_worker(cloud: Cloud, dagster: DagsterServices) -> None:
    happy = launch(cloud, dagster, "look_think_tell")
    cloud.until(happy, "SUCCESS")

    lost = launch(cloud, dagster, "waits")
    worker_of(cloud, lost)
    [job] = [job for job in cloud.batch.jobs() if lost.run_id in job["jobName"]]
    cloud.batch.kill_container(job["jobId"])
    cloud.until(lost, "FAILURE")
    assert cloud.fresh(lost).tags["batch_gpu/failure"] == "worker-lost"

    retried = RunsFilter(tags={"dagster/parent_run_id": lost.run_id})
    [again] = wait_for("run_retries", lambda: cloud.instance.get_runs(retried))
    worker_of(cloud, again)
    post(dagster, TERMINATE, run=again.run_id)
    cloud.until(again, "CANCELED")

    cloud.batch.set_machines("gpu", Machines(gpus=1, count=0))
    waiting = launch(cloud, dagster, "look_think_tell")
    wait_for("the sensor's word", lambda: "The job waits for a machine" in cloud.messages(waiting))
    cloud.batch.set_machines("gpu", Machines(gpus=1))
    cloud.until(waiting, "SUCCESS")

    jobs = {job["jobName"] for job in cloud.batch.jobs()}
    assert len(jobs) == len(cloud.batch.jobs()) == 4, "one job a run"
