"""The fake Batch, asked by boto3: it does what AWS documents, so that tests against it mean something."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import psutil  # type: ignore[import-untyped]
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ParamValidationError

from batch_gpu.aws import BatchApi
from batch_gpu.config import JobConfig
from batch_gpu.errors import ConfigurationError
from batch_gpu.job_definitions import JobDefinitions
from batch_gpu.testing import FakeBatchServer, Fault, Machines, Queue, TimeLimit, fake_batch_server
from tests.batch_gpu.conftest import ROOT
from tests.support.moto import moto_server
from tests.support.waiting import scaled, wait_for


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBatchServer]:
    queues = [
        Queue("gpu", Machines(gpus=2, vcpus=4), [TimeLimit("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY", 600)]),
        Queue("fair", fair_share=True),
    ]
    with fake_batch_server(queues, secrets={"arn:s": "hidden"}, stop_grace_s=10) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        server.batch.define_job("job", environment=[{"name": "A", "value": "1"}, {"name": "B", "value": "1"}])
        yield server


def client(service: str = "batch") -> Any:
    config = Config(retries={"mode": "standard", "total_max_attempts": 1})
    return boto3.client(service, config=config)  # type: ignore[call-overload]


def submit(code: str = "", gpus: int = 0, **request: Any) -> str:
    requirements = [{"type": "GPU", "value": str(gpus)}] if gpus else []
    overrides = {"command": [sys.executable, "-c", code], "resourceRequirements": requirements}
    overrides |= request.pop("containerOverrides", {})
    whole = {"jobName": "a", "jobQueue": "gpu", "jobDefinition": "job", "containerOverrides": overrides}
    return str(client().submit_job(**(whole | request))["jobId"])


def described(job_id: str) -> dict[str, Any]:
    [job] = client().describe_jobs(jobs=[job_id])["jobs"]
    return dict(job)


def until(job_id: str, *status: str) -> dict[str, Any]:
    wait_for(f"{job_id} {status}", lambda: described(job_id)["status"] in status)
    return described(job_id)


WAITS = "import time; print('here', flush=True); time.sleep(600)"


def test_a_command_runs_with_its_environment_and_its_output_is_logged(server: FakeBatchServer) -> None:
    code = (
        "import os; print(*[os.environ[n] for n in ('A', 'B', 'AWS_BATCH_JOB_ID', 'AWS_BATCH_JOB_ATTEMPT')])"
    )
    job = submit(code, containerOverrides={"environment": [{"name": "B", "value": "2"}]})
    ended = until(job, "SUCCEEDED", "FAILED")
    assert (ended["status"], ended["container"]["exitCode"]) == ("SUCCEEDED", 0)
    [event] = client("logs").get_log_events(
        logGroupName="/aws/batch/job", logStreamName=ended["container"]["logStreamName"]
    )["events"]
    assert event["message"] == f"1 2 {job} 1"


def test_secrets_reach_the_container(server: FakeBatchServer) -> None:
    server.batch.define_job("secretive", secrets=[{"name": "S", "valueFrom": "arn:s"}])
    ended = until(
        submit("import os; assert os.environ['S'] == 'hidden'", jobDefinition="secretive"), "SUCCEEDED"
    )
    assert ended["status"] == "SUCCEEDED"


def test_jobs_run_in_order_as_far_as_the_machines_hold_them(server: FakeBatchServer) -> None:
    first, second, third = (submit(WAITS, gpus=1) for _ in range(3))
    until(first, "RUNNING")
    until(second, "RUNNING")
    assert described(third)["status"] in ("SUBMITTED", "RUNNABLE")
    client().terminate_job(jobId=first, reason="enough")
    until(third, "RUNNING")
    assert until(first, "FAILED")["statusReason"] == "enough"


def test_a_higher_priority_goes_first_within_a_share(server: FakeBatchServer) -> None:
    server.batch.set_machines("fair", Machines(count=0))
    low, high = (
        submit(WAITS, jobQueue="fair", shareIdentifier="s", schedulingPriorityOverride=priority)
        for priority in (1, 9)
    )
    wait_for("both to wait", lambda: {described(each)["status"] for each in (low, high)} == {"RUNNABLE"})
    server.batch.set_machines("fair", Machines(vcpus=1))
    until(high, "RUNNING")
    assert described(low)["status"] == "RUNNABLE"


@pytest.mark.parametrize(
    ("rules", "attempts"),
    [
        (None, 3),
        ([{"onExitCode": "9", "action": "EXIT"}], 1),
        ([{"onExitCode": "1*", "action": "EXIT"}], 3),
        ([{"onStatusReason": "Host EC2*", "action": "RETRY"}, {"onReason": "*", "action": "EXIT"}], 1),
        ([{"onStatusReason": "Essential*", "onExitCode": "9", "action": "RETRY"}], 3),
    ],
)
def test_retries_follow_the_first_rule_that_matches(
    server: FakeBatchServer, rules: list[dict[str, str]] | None, attempts: int
) -> None:
    strategy: dict[str, Any] = {"attempts": 3} | ({"evaluateOnExit": rules} if rules else {})
    ended = until(submit("raise SystemExit(9)", retryStrategy=strategy), "FAILED")
    assert len(ended["attempts"]) == attempts
    assert ended["container"]["exitCode"] == 9


def test_a_cancelled_job_never_starts_and_a_running_one_is_left_alone(server: FakeBatchServer) -> None:
    running = submit(WAITS, gpus=2)
    until(running, "RUNNING")
    waiting = submit(WAITS, gpus=2)
    for job in (running, waiting):
        client().cancel_job(jobId=job, reason="not wanted")
    cancelled = until(waiting, "FAILED")
    assert (cancelled["isCancelled"], cancelled["statusReason"]) == (True, "not wanted")
    assert described(running)["status"] == "RUNNING"


def test_a_time_limit_ends_a_job_for_good(server: FakeBatchServer) -> None:
    job = submit(WAITS, timeout={"attemptDurationSeconds": 60}, retryStrategy={"attempts": 3})
    until(job, "RUNNING")
    server.batch.clock.advance(61)
    ended = until(job, "FAILED")
    assert ended["statusReason"] == "Job attempt duration exceeded timeout"
    assert len(ended["attempts"]) == 1


def test_waiting_without_machines_ends_at_the_queues_limit(server: FakeBatchServer) -> None:
    server.batch.set_machines("gpu", Machines(gpus=1, count=0))
    job = submit(gpus=1)
    wait_for("the reason", lambda: "CAPACITY" in described(job).get("statusReason", ""))
    server.batch.clock.advance(601)
    assert until(job, "FAILED")["statusReason"].startswith("Canceled by JobStateTimeLimit action")


def test_overrides_too_long_for_ecs_fail_the_job_not_the_request(server: FakeBatchServer) -> None:
    job = submit(containerOverrides={"environment": [{"name": "A", "value": "x" * 9000}]})
    assert until(job, "FAILED")["statusReason"] == "Container Overrides length must be at most 8192"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"jobName": "-a"}, "pattern"),
        ({"jobQueue": "nowhere"}, "not found"),
        ({"jobDefinition": "nothing"}, "not found"),
        ({"jobDefinition": "job:7"}, "not found"),
        ({"timeout": {"attemptDurationSeconds": 59}}, "60"),
        ({"shareIdentifier": "s"}, "share"),
        ({"jobQueue": "fair"}, "share"),
        ({"retryStrategy": {"attempts": 11}}, "attempts"),
        ({"tags": {"a": "x" * 31_000}}, "30 KiB"),
    ],
)
def test_what_aws_refuses_is_refused(server: FakeBatchServer, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ClientError, match=message) as caught:
        submit(**request_)
    assert caught.value.response["Error"]["Code"] == "ClientException"


def test_botocore_checks_parameters_before_the_fake_sees_them(server: FakeBatchServer) -> None:
    with pytest.raises(ParamValidationError):
        submit(gpu=1)
    assert server.batch.calls == {}


def test_jobs_are_listed_by_name_or_status_newest_first_in_pages(server: FakeBatchServer) -> None:
    server.batch.set_machines("gpu", Machines(count=0))
    jobs = [submit(jobName=name) for name in ("run-1", "RUN-1", "run-10", "other")]
    page = client().list_jobs(
        jobQueue="gpu", filters=[{"name": "JOB_NAME", "values": ["run-1"]}], maxResults=1
    )
    rest = client().list_jobs(
        jobQueue="gpu", filters=[{"name": "JOB_NAME", "values": ["run-1"]}], nextToken=page["nextToken"]
    )
    assert [job["jobId"] for job in page["jobSummaryList"] + rest["jobSummaryList"]] == [jobs[1], jobs[0]]
    prefix = client().list_jobs(jobQueue="gpu", filters=[{"name": "JOB_NAME", "values": ["run-1*"]}])
    assert len(prefix["jobSummaryList"]) == 3
    assert client().list_jobs(jobQueue="gpu")["jobSummaryList"] == [], (
        "only running ones unless asked for others"
    )
    server.batch.listing_lag_s = 60
    assert client().list_jobs(jobQueue="gpu", jobStatus="RUNNABLE")["jobSummaryList"] == []


def test_a_hundred_jobs_are_described_at_once_and_no_more(server: FakeBatchServer) -> None:
    job = submit()
    assert len(client().describe_jobs(jobs=[job, *["unknown"] * 99])["jobs"]) == 1
    with pytest.raises(ClientError, match="100"):
        client().describe_jobs(jobs=[job] * 101)


def test_faults_hit_as_often_as_asked_before_or_after_the_effect(server: FakeBatchServer) -> None:
    server.batch.faults.append(Fault("SubmitJob", times=2, skip=1))
    submit()
    for _ in range(2):
        with pytest.raises(ClientError, match="TooManyRequests"):
            submit()
    submit()
    assert len(server.batch.jobs()) == 2
    server.batch.faults.append(Fault("SubmitJob", None, after=True))
    with pytest.raises(ConnectionClosedError):
        submit()
    assert len(server.batch.jobs()) == 3


def test_queues_and_environments_are_described(server: FakeBatchServer) -> None:
    [queue] = client().describe_job_queues(jobQueues=["gpu"])["jobQueues"]
    assert queue["jobStateTimeLimitActions"][0]["maxTimeSeconds"] == 600
    [environment] = client().describe_compute_environments(computeEnvironments=["gpu"])["computeEnvironments"]
    assert environment["state"] == "ENABLED"


def test_its_processes_end_with_it() -> None:
    from batch_gpu.fork_worker import start_time

    with fake_batch_server([Queue("q")]) as server:
        server.batch.define_job("job", command=[sys.executable, "-c", WAITS])
        server.batch.handle("SubmitJob", {"jobName": "a", "jobQueue": "q", "jobDefinition": "job"})
        job = wait_for("its start", lambda: [j for j in server.batch.jobs() if j["status"] == "RUNNING"])[0]
        pid = server.batch.pid(job["jobId"])
        assert pid is not None
        assert start_time(pid) is not None
    assert start_time(pid) is None


# --- what the launcher makes of job definitions, which only a server can show ---


def test_a_killed_container_takes_along_what_made_a_group_of_its_own(server: FakeBatchServer) -> None:
    grown = "import os, time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(600)"
    first = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grown!r}])"
    job = submit(first)
    [line] = wait_for("the inner process", lambda: server.batch.log_lines(job))
    inner = psutil.Process(int(line))

    client().terminate_job(jobId=job, reason="a test")

    wait_for("the inner process's end", lambda: not inner.is_running() or inner.status() == "zombie")


def test_a_revision_is_registered_once_whoever_needs_it(server: FakeBatchServer) -> None:
    job = JobConfig(job_queue="gpu", job_definition="job", image="new:1", secrets={"S": "arn:s"})
    processes = [JobDefinitions(BatchApi()) for _ in range(2)]
    threads = [threading.Thread(target=processes[0].for_job, args=[job]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arns = {definitions.for_job(job) for definitions in processes for _ in range(3)}
    assert len(arns) == 1
    assert server.batch.calls["RegisterJobDefinition"] == 1
    [made] = client().describe_job_definitions(jobDefinitions=[*arns])["jobDefinitions"]
    assert made["containerProperties"]["image"] == "new:1"
    assert made["containerProperties"]["environment"][0] == {"name": "A", "value": "1"}


def test_a_new_revision_of_the_base_is_varied_afresh(server: FakeBatchServer) -> None:
    now = [0.0]
    definitions = JobDefinitions(BatchApi(), clock=lambda: now[0])
    job = JobConfig(job_queue="gpu", job_definition="job", shared_memory_mib=64)
    before = definitions.for_job(job)
    server.batch.define_job("job", image="deployed:2")
    now[0] = 301.0
    after = definitions.for_job(job)
    assert before != after


def test_the_latest_of_many_revisions_is_found(server: FakeBatchServer) -> None:
    """AWS answers with at most a hundred of them."""
    for number in range(120):
        server.batch.define_job("job", image=f"deployed:{number}")
    revision = JobDefinitions(BatchApi()).for_job(
        JobConfig(job_queue="gpu", job_definition="job", shared_memory_mib=64)
    )
    [made] = client().describe_job_definitions(jobDefinitions=[revision])["jobDefinitions"]
    assert made["containerProperties"]["image"] == "deployed:119"


def test_secrets_are_found_by_their_tag(server: FakeBatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", url)
        secrets = boto3.client("secretsmanager")
        arns = {
            name: secrets.create_secret(Name=name, SecretString="s", Tags=[{"Key": key, "Value": variable}])[
                "ARN"
            ]
            for name, key, variable in (
                ("a", "dagster", "API_TOKEN"),
                ("b", "dagster", "ANOTHER"),
                ("c", "dagster-other", "NOT_THIS"),
            )
        }
        revision = JobDefinitions(BatchApi()).for_job(
            JobConfig(
                job_queue="gpu", job_definition="job", secrets_tag="dagster", secrets={"ANOTHER": "arn:given"}
            )
        )
    [made] = client().describe_job_definitions(jobDefinitions=[revision])["jobDefinitions"]
    assert made["containerProperties"]["secrets"] == [
        {"name": "ANOTHER", "valueFrom": "arn:given"},
        {"name": "API_TOKEN", "valueFrom": arns["a"]},
    ]


def test_a_definition_that_does_not_exist_is_named(server: FakeBatchServer) -> None:
    for name in ("nothing", "job:9"):
        with pytest.raises(ConfigurationError, match=name):
            JobDefinitions(BatchApi()).for_job(JobConfig(job_queue="gpu", job_definition=name, image="i"))
    plain = JobConfig(job_queue="gpu", job_definition="nothing")
    assert JobDefinitions(BatchApi()).for_job(plain) == "nothing", "and is AWS's to refuse otherwise"


def test_it_serves_as_a_program_too() -> None:
    arguments = ["--queue", "gpu:1", "--define", "worker"]
    program = subprocess.Popen(
        [sys.executable, "-m", "batch_gpu.testing", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    url = program.stdout.readline().strip()
    batch = boto3.client(
        "batch",
        endpoint_url=url,
        region_name="ap-northeast-2",
        aws_access_key_id="fake",
        aws_secret_access_key="fake",
        config=Config(proxies={}),
    )
    overrides = {"command": [sys.executable, "-c", WAITS]}
    job = batch.submit_job(jobName="a", jobQueue="gpu", jobDefinition="worker", containerOverrides=overrides)[
        "jobId"
    ]
    wait_for("its start", lambda: batch.describe_jobs(jobs=[job])["jobs"][0]["status"] == "RUNNING")
    [worker] = psutil.Process(program.pid).children()
    program.terminate()
    assert program.wait(timeout=scaled(30)) == 0
    wait_for("the container's end", lambda: not worker.is_running())
