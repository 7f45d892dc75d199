"""Five hundred runs at once: what they cost in requests to AWS."""

from uuid import uuid4

import dagster as dg

from batch_gpu.testing import Machines
from tests.batch_gpu.conftest import Cloud
from tests.batch_gpu.daemon import queue_pass
from tests.support.waiting import wait_for

RUNS = 500


def test_five_hundred_runs_at_once_cost_little_more_than_their_submission(cloud: Cloud) -> None:
    # `true` in place of Dagster: the container does nothing, so that this measures the launcher.
    cloud.configure(launcher={"entry_point": ["true"]}, concurrency={"runs": {"max_concurrent_runs": -1}})
    cloud.batch.set_machines("gpu", Machines(count=0))
    first = cloud.queued()
    for _ in range(RUNS - 1):
        cloud.instance.add_run(first._replace(run_id=str(uuid4())))

    queue_pass(cloud.instance)
    passes = 2
    for _ in range(passes):
        assert cloud.watch().waiting == RUNS
    cloud.batch.set_machines("gpu", Machines(gpus=8, vcpus=8, count=4))
    wait_for("all jobs", lambda: {job["status"] for job in cloud.batch.jobs()} == {"SUCCEEDED"})
    assert cloud.watch().failed == RUNS, "no worker has finished its run"

    calls = cloud.batch.calls
    names = {job["jobName"] for job in cloud.batch.jobs()}
    assert len(names) == calls["SubmitJob"] == RUNS
    # A description of 500 jobs is five requests; a pass makes it once, whatever it asks about each run.
    assert calls["DescribeJobs"] <= 5 * (passes + 2)
    assert calls["ListJobs"] == 0
    assert sum(calls.values()) / RUNS <= 2
    failed = cloud.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert {run.tags["batch_gpu/failure"] for run in failed} == {"worker-lost"}
