"""Many runs at once: what they cost in requests to AWS."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from batch_gpu.testing import Fault, Machines
from tests.batch_gpu.conftest import Cloud
from tests.support.waiting import wait_for

# DescribeJobs answers for 100 jobs, so these are two requests.
RUNS = 120
PAGES = 2


def test_many_runs_at_once_cost_little_more_than_their_submission(cloud: Cloud) -> None:
    # `true` in place of Dagster: the container does nothing, so that this measures the launcher.
    # What a pass reads stays good for half the interval, which no pass may exceed.
    monitoring = {"enabled": True, "poll_interval_seconds": 600}
    cloud.configure(launcher={"entry_point": ["true"]}, run_monitoring=monitoring)
    cloud.batch.set_machines("gpu", Machines(count=0))
    first = cloud.run()
    runs = [first._replace(run_id=str(uuid4())) for _ in range(RUNS)]
    cloud.instance.delete_run(first.run_id)  # was only their pattern; the sensor would submit it some day
    with ThreadPoolExecutor(4) as threads:  # as the daemon does with dequeue_use_threads
        list(threads.map(lambda run: cloud.launcher.submit(cloud.instance.add_run(run)), runs))
    passes = 3
    for _ in range(passes):
        assert cloud.watch().waiting == RUNS
    described = cloud.batch.calls["DescribeJobs"]
    cloud.batch.faults.append(Fault("DescribeJobs", times=None))
    cloud.configure(launcher={"entry_point": ["true"]}, run_monitoring=monitoring)  # knows nothing yet
    assert cloud.watch().unanswered == RUNS
    assert cloud.batch.calls["DescribeJobs"] - described == 1, "who is throttled does not ask for each run"
    cloud.batch.faults.clear()
    cloud.batch.set_machines("gpu", Machines(gpus=8, vcpus=8, count=4))
    wait_for("all jobs", lambda: {job["status"] for job in cloud.batch.jobs()} == {"SUCCEEDED"})

    calls = cloud.batch.calls
    assert len({job["jobName"] for job in cloud.batch.jobs()}) == calls["SubmitJob"] == RUNS
    # A pass describes all jobs once at most, whatever it asks about each run.
    assert calls["DescribeJobs"] <= PAGES * passes + 1
    assert calls["ListJobs"] == 0
    print(f"{sum(calls.values()) / RUNS:.3f} requests a run: {dict(calls)}")
    assert sum(calls.values()) / RUNS <= 2
