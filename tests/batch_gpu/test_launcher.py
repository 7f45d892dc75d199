"""Runs on the fake Batch, from launch to end: what happens to each, in the words that an operator reads."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import dagster as dg
import psutil  # type: ignore[import-untyped]
import pytest
from dagster._core.launcher import WorkerStatus

from batch_gpu.errors import AwsUnavailable, BatchGpuError, PermissionDenied, RequestRefused
from batch_gpu.launcher import BatchGpuRunLauncher
from batch_gpu.testing import Fault, Machines, TimeLimit
from tests.batch_gpu.conftest import Cloud
from tests.support.waiting import scaled, wait_for

LATER = 1000.0
"""More seconds than any launch takes: a run that has not begun by then was cut off."""


def begun(cloud: Cloud, run: dg.DagsterRun) -> int:
    """Wait until the endless run is under way; its worker's pid."""
    said = cloud.home / "endless"
    wait_for("the worker", lambda: said.exists() and said.read_text().startswith(run.run_id))
    return int(said.read_text().split()[1])


def looked(cloud: Cloud) -> list[str]:
    """Runs that executed the GPU step, each as often as it did."""
    said = cloud.home / "looked"
    return said.read_text().split() if said.exists() else []


def test_a_run_executes_as_one_job_and_says_where(cloud: Cloud) -> None:
    run = cloud.run()
    cloud.launch(run)
    assert cloud.until(run, "SUCCESS").tags["batch_gpu/job_queue"] == "gpu"
    job = cloud.until_job("SUCCEEDED")
    assert cloud.fresh(run).tags["batch_gpu/job_id"] == job["jobId"]
    assert looked(cloud) == [run.run_id]
    assert job["tags"]["dagster/run_id"] == run.run_id
    [submitted] = [
        entry.dagster_event.engine_event_data.metadata
        for entry in cloud.instance.all_logs(run.run_id)
        if entry.dagster_event and "Submitted" in (entry.dagster_event.message or "")
    ]
    assert submitted["Console"].value == (
        "https://ap-northeast-2.console.aws.amazon.com/batch/home?region=ap-northeast-2#jobs/detail/"
        + job["jobId"]
    )
    assert cloud.batch.calls == {"SubmitJob": 1}


def test_a_long_command_is_handed_over_compressed(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch_gpu.launcher.LONGEST_PLAIN_COMMAND", 100)
    run = cloud.run()
    cloud.launch(run)
    cloud.until(run, "SUCCESS")
    command = cloud.job()["container"]["command"]
    assert command[-2] == "--compressed-input-json"
    assert len(command[-1]) < 2000


def test_the_log_stream_is_told_as_soon_as_there_is_one(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    begun(cloud, run)
    assert cloud.monitor() == []
    stream = cloud.job()["container"]["logStreamName"]
    assert cloud.fresh(run).tags["batch_gpu/log_stream"] == stream
    assert "log is in CloudWatch" in cloud.messages(run)
    assert cloud.monitor() == []
    assert cloud.messages(run).count("log is in CloudWatch") == 1


def test_a_worker_that_lives_is_left_alone(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    begun(cloud, run)
    for _ in range(3):
        assert cloud.monitor() == []
    assert cloud.status(run) == "STARTED"


@pytest.mark.parametrize("again", ["launched", "watched"])
def test_launching_twice_makes_one_job(cloud: Cloud, again: str) -> None:
    cloud.batch.set_machines("gpu", Machines(count=0))
    run = cloud.run()
    cloud.launch(run)
    if again == "launched":
        cloud.launch(cloud.fresh(run))
    else:
        cloud.watch(LATER)
    assert len(cloud.batch.jobs()) == 1
    assert cloud.batch.calls["SubmitJob"] == 1


def test_a_code_locations_image_and_settings_reach_its_jobs(cloud: Cloud) -> None:
    """As dagster-aws' ECS launcher takes them; and the run's tags that are listed, for splitting costs."""
    cloud.configure(launcher={"run_tags": ["team", "absent"]})
    run = cloud.run(tags={"team": "vision", "not": "listed"})
    origin = run.job_code_origin
    assert origin is not None
    context = {"batch_gpu": {"gpu": {"vcpus": 3, "environment": {"FROM": "the location"}}}}
    location = origin.repository_origin._replace(container_image="code:2", container_context=context)

    cloud.launch(run._replace(job_code_origin=origin._replace(repository_origin=location)))

    cloud.until(run, "SUCCESS")
    container, tags = cloud.job()["container"], cloud.job()["tags"]
    assert container["image"] == "code:2"
    assert {"name": "FROM", "value": "the location"} in container["environment"]
    assert {"type": "VCPU", "value": "3"} in container["resourceRequirements"]
    assert (tags["team"], tags["dagster/run_id"]) == ("vision", run.run_id)
    assert not {"not", "absent"} & set(tags)


def test_a_subclass_changes_the_request_but_not_how_the_job_is_found(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def customized(self: Any, run: dg.DagsterRun, request: Any) -> Any:
        return {**request, "jobName": "lost", "tags": {**request["tags"], "job": run.job_name}}

    monkeypatch.setattr(BatchGpuRunLauncher, "customized", customized)
    run = cloud.run()
    cloud.launch(run)
    assert cloud.job()["tags"]["job"] == run.job_name
    assert run.run_id in cloud.job()["jobName"]


# --- lost workers ---


def test_an_oom_killed_container_fails_the_run_with_its_last_words(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    pid = begun(cloud, run)
    cloud.batch.kill_container(cloud.job()["jobId"])
    assert not psutil.pid_exists(pid)

    assert cloud.monitor() == []

    failed = cloud.fresh(run)
    assert failed.status == dg.DagsterRunStatus.FAILURE
    assert failed.tags["batch_gpu/failure"] == "worker-lost"
    text = cloud.messages(run)
    for words in (
        "killed for memory",
        "exit code 137",
        "attempt 1",
        "OutOfMemoryError",
        "waiting without end",
    ):
        assert words in text, words
    assert "_aws" not in text, "lines that carry metrics are no words"
    assert failed.tags["dagster/will_retry"] == "true"


def test_a_worker_killed_by_a_signal_is_lost_too(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    os.kill(begun(cloud, run), signal.SIGKILL)
    cloud.until_job("FAILED")
    assert cloud.monitor() == []
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "worker-lost"
    assert "exit code 137" in cloud.messages(run)


def test_a_host_reclaimed_before_the_run_began_costs_nothing_but_time(cloud: Cloud) -> None:
    cloud.batch.set_machines("gpu", Machines(gpus=1, starts_in_s=3600))
    run = cloud.run()
    cloud.launch(run)
    job = cloud.until_job("STARTING")
    cloud.batch.reclaim_host(job["jobId"])
    cloud.watch()
    assert cloud.status(run) == "STARTING"

    wait_for("the second attempt", lambda: cloud.job()["attempts"] and cloud.job()["status"] == "STARTING")
    cloud.batch.clock.advance(3600)

    cloud.until(run, "SUCCESS")
    assert looked(cloud) == [run.run_id]


def test_a_host_reclaimed_during_the_run_fails_it_and_ends_the_useless_second_attempt(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    begun(cloud, run)
    cloud.batch.set_machines("cpu", Machines(count=0))
    cloud.batch.reclaim_host(cloud.job()["jobId"])
    assert cloud.job()["status"] == "RUNNABLE", "Batch would start it again"

    assert cloud.monitor() == []

    assert cloud.status(run) == "FAILURE"
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "worker-lost"
    assert "Host EC2" in cloud.messages(run)
    assert cloud.fresh(run).tags["dagster/will_retry"] == "true"
    assert cloud.job()["status"] == "FAILED"


def test_a_second_attempt_that_already_runs_does_not_hide_the_lost_one(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    begun(cloud, run)
    cloud.batch.reclaim_host(cloud.job()["jobId"])
    wait_for("the second attempt", lambda: cloud.job()["status"] != "RUNNABLE")
    assert cloud.monitor() == []
    assert cloud.status(run) == "FAILURE"
    cloud.until_job("FAILED")


def test_a_worker_that_leaves_an_unfinished_run_behind_is_lost(cloud: Cloud) -> None:
    cloud.configure(launcher={"entry_point": ["true"]})
    run = cloud.run()
    cloud.launch(run)
    cloud.until_job("SUCCEEDED")
    cloud.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", run.job_name), run_id=run.run_id)
    assert cloud.monitor() == []
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "worker-lost"
    assert "ended without finishing" in cloud.messages(run)


# --- time, machines, images ---


def test_a_job_over_its_time_limit_fails_the_run_as_such(cloud: Cloud) -> None:
    run = cloud.run("waits", tags={"batch_gpu/config": json.dumps({"timeout_seconds": 60})})
    cloud.launch(run)
    pid = begun(cloud, run)
    cloud.batch.clock.advance(61)
    cloud.until_job("FAILED")
    assert not psutil.pid_exists(pid)
    # Told to stop by a signal, the worker reports the run's end without knowing why.
    assert cloud.status(run) == "FAILURE"
    assert cloud.watch().explained == 1
    assert cloud.watch().explained == 0
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "timeout"
    assert "Job attempt duration exceeded timeout" in cloud.messages(run)


def test_a_worker_over_its_time_that_cannot_even_say_so_fails_by_class(cloud: Cloud) -> None:
    run = cloud.run("waits", tags={"batch_gpu/config": json.dumps({"timeout_seconds": 60})})
    cloud.launch(run)
    pid = begun(cloud, run)
    os.kill(pid, signal.SIGSTOP)  # hangs: SIGTERM does not reach it
    cloud.batch.scheduler.stop_grace_s = 0
    cloud.batch.clock.advance(61)
    cloud.until_job("FAILED")
    assert cloud.monitor() == []
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "timeout"


def test_a_job_that_no_machine_can_hold_is_refused_by_class(cloud: Cloud) -> None:
    run = cloud.run(tags={"batch_gpu/config": json.dumps({"gpus": 64})})
    cloud.launch(run)
    wait_for("AWS's word", lambda: "MISCONFIGURATION" in str(cloud.job().get("statusReason")))
    assert cloud.watch().failed == 1
    failed = cloud.fresh(run)
    assert failed.tags["batch_gpu/failure"] == "configuration"
    assert "No machine of the queue can ever run the job" in cloud.messages(run)
    assert failed.tags["dagster/will_retry"] == "false", "trying again cannot help"
    assert cloud.job()["status"] == "FAILED"


@pytest.mark.parametrize(
    ("reason", "after_s", "failure"),
    [
        ("MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED - unsupported", 600, "configuration"),
        ("ACTION_REQUIRED - CE(s) associated with the job queue are invalid.", 600, "configuration"),
        ("UNDETERMINED - Batch job is blocked, root cause is undetermined.", 1800, "capacity"),
    ],
)
def test_a_job_at_the_head_of_a_blocked_queue_ends_when_the_reason_has_not_passed(
    cloud: Cloud, reason: str, after_s: int, failure: str
) -> None:
    """Counted from when the reason was seen, not from the submission: others may have been in front of it."""
    cloud.batch.queues["gpu"].blocked = reason
    run = cloud.run(tags={"batch_gpu/config": json.dumps({"max_wait_seconds": 13_500})})
    cloud.launch(run)
    wait_for("AWS's word", lambda: reason == cloud.job().get("statusReason"))
    assert cloud.watch(3600).waiting == 1
    assert cloud.watch(3600 + after_s - 5).waiting == 1

    assert cloud.watch(3600 + after_s + 1).failed == 1

    assert cloud.fresh(run).tags["batch_gpu/failure"] == failure
    assert cloud.job()["status"] == "FAILED"


def test_a_queue_that_is_no_longer_blocked_starts_the_job(cloud: Cloud) -> None:
    cloud.batch.queues["gpu"].blocked = "ACTION_REQUIRED - CE(s) associated with the job queue are invalid."
    run = cloud.run()
    cloud.launch(run)
    wait_for("AWS's word", lambda: cloud.job().get("statusReason"))
    assert cloud.watch().waiting == 1
    cloud.batch.queues["gpu"].blocked = None
    cloud.until(run, "SUCCESS")


def test_a_job_that_the_queue_cancels_fails_the_run_by_class(cloud: Cloud) -> None:
    cloud.batch.queues["gpu"].time_limits = [TimeLimit("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY", 600)]
    cloud.batch.set_machines("gpu", Machines(gpus=1, count=0))
    run = cloud.run()
    cloud.launch(run)
    wait_for("AWS's word", lambda: "CAPACITY" in str(cloud.job().get("statusReason")))
    cloud.batch.clock.advance(601)
    cloud.until_job("FAILED")
    assert cloud.watch().failed == 1
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "capacity"
    assert cloud.fresh(run).tags["dagster/will_retry"] == "true"


def test_waiting_for_a_machine_is_said_once_and_ends_at_its_limit(cloud: Cloud) -> None:
    cloud.batch.set_machines("gpu", Machines(gpus=1, count=0))
    limit = {"max_wait_seconds": 3600}
    run = cloud.run(tags={"batch_gpu/config": json.dumps(limit)})
    cloud.launch(run)
    wait_for("AWS's word", lambda: "CAPACITY" in str(cloud.job().get("statusReason")))
    for _ in range(2):
        assert cloud.watch().waiting == 1
    assert cloud.messages(run).count("The job waits for a machine (RUNNABLE: CAPACITY") == 1
    assert cloud.fresh(run).tags[".dagster/batch_gpu.status"].startswith("RUNNABLE: CAPACITY")
    assert cloud.watch(3500).waiting == 1

    assert cloud.watch(3700).failed == 1

    assert cloud.fresh(run).tags["batch_gpu/failure"] == "capacity"
    assert cloud.job()["status"] == "FAILED", "it must not start when nobody waits for it any more"


def test_an_image_that_cannot_be_pulled_fails_the_run_by_class(cloud: Cloud) -> None:
    cloud.batch.unpullable.add("registry/mistyped:1")
    run = cloud.run(tags={"batch_gpu/config": json.dumps({"image": "registry/mistyped:1"})})
    cloud.launch(run)
    cloud.until_job("FAILED")
    assert cloud.watch().failed == 1
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "container-start"
    assert "CannotPullContainerError" in cloud.messages(run)


def test_a_command_that_is_not_in_the_image_fails_the_run_by_class(cloud: Cloud) -> None:
    cloud.configure(launcher={"entry_point": ["/no/such/program"]})
    run = cloud.run()
    cloud.launch(run)
    cloud.until_job("FAILED")
    assert cloud.watch().failed == 1
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "container-start"


def test_a_job_that_somebody_ends_in_the_console_is_not_tried_again(cloud: Cloud) -> None:
    cloud.batch.set_machines("gpu", Machines(count=0))
    run = cloud.run()
    cloud.launch(run)
    cloud.launcher.api.terminate(cloud.job()["jobId"], "An operator's reason")
    assert cloud.watch().failed == 1
    assert "An operator's reason" in cloud.messages(run)
    assert cloud.fresh(run).tags["dagster/will_retry"] == "false"


# --- cancelling ---


def test_a_run_canceled_before_it_began_is_canceled_at_once(cloud: Cloud) -> None:
    cloud.batch.set_machines("gpu", Machines(count=0))
    run = cloud.run()
    cloud.launch(run)
    assert cloud.launcher.terminate(run.run_id)
    assert cloud.status(run) == "CANCELED"
    assert cloud.job()["status"] == "FAILED"
    assert run.run_id in cloud.job()["statusReason"]
    assert not cloud.launcher.terminate(run.run_id)


def test_a_run_canceled_in_its_midst_ends_by_the_workers_own_report(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    pid = begun(cloud, run)
    assert cloud.launcher.terminate(run.run_id)
    cloud.until(run, "CANCELED")
    cloud.until_job("FAILED")
    assert not psutil.pid_exists(pid)
    assert 'Execution of run for "waits" canceled' in cloud.messages(run)


def test_a_run_whose_worker_is_gone_is_canceled_at_once(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    begun(cloud, run)
    cloud.batch.kill_container(cloud.job()["jobId"])
    assert cloud.launcher.terminate(run.run_id)
    assert cloud.status(run) == "CANCELED"


def test_a_run_canceled_while_aws_throttles_leaves_no_job_behind(
    cloud: Cloud, in_background: Callable[[Callable[[], Any]], Any]
) -> None:
    cloud.batch.faults.append(Fault("SubmitJob", times=None))
    run = cloud.run()
    launch = in_background(lambda: cloud.launch(run))
    wait_for("the first try", lambda: cloud.batch.calls["SubmitJob"])
    assert cloud.launcher.terminate(run.run_id)
    cloud.batch.faults.clear()
    launch.join(timeout=scaled(60))
    wait_for("the job's end", lambda: {job["status"] for job in cloud.batch.jobs()} <= {"FAILED"})
    assert cloud.status(run) == "CANCELED"
    assert looked(cloud) == []


def test_a_run_that_dagster_gave_up_leaves_no_job_behind(cloud: Cloud) -> None:
    cloud.configure(run_monitoring={"enabled": True, "start_timeout_seconds": 1, "poll_interval_seconds": 1})
    cloud.batch.set_machines("gpu", Machines(count=0))
    run = cloud.run()
    cloud.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_STARTING", run.job_name), run.run_id)
    cloud.launch(run)
    wait_for("Dagster's patience to end", lambda: cloud.monitor() or cloud.status(run) == "FAILURE")
    assert "RUNNABLE" in cloud.messages(run), "the debug info says what it waited for"
    assert cloud.watch().ended == 1
    assert cloud.job()["status"] == "FAILED"


# --- AWS says no ---


def test_throttling_is_waited_out(cloud: Cloud) -> None:
    cloud.batch.faults.append(Fault("SubmitJob", times=3))
    run = cloud.run()
    cloud.launch(run)
    assert cloud.batch.calls["SubmitJob"] == 4
    cloud.until(run, "SUCCESS")


def test_throttling_without_end_fails_the_run_as_capacity(cloud: Cloud) -> None:
    cloud.configure(launcher={"submit_deadline_seconds": 1})
    cloud.batch.faults.append(Fault("SubmitJob", times=None))
    run = cloud.run()
    with pytest.raises(AwsUnavailable, match="throttles"):
        cloud.launch(run)
    assert cloud.status(run) == "FAILURE"
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "capacity"
    assert cloud.fresh(run).tags["dagster/will_retry"] == "true"


def test_a_missing_permission_is_named_at_once_and_not_tried_again(cloud: Cloud) -> None:
    text = "User: arn:aws:sts::1:assumed-role/daemon is not authorized to perform: batch:TagResource on x"
    cloud.batch.faults.append(Fault("SubmitJob", "AccessDeniedException", text, 403, times=None))
    run = cloud.run()
    with pytest.raises(PermissionDenied, match="Allow batch:TagResource"):
        cloud.launch(run)
    assert cloud.batch.calls["SubmitJob"] == 1
    failed = cloud.fresh(run)
    assert failed.tags["batch_gpu/failure"] == "permission-denied"
    assert failed.tags["dagster/will_retry"] == "false"
    assert "batch:TagResource" in cloud.messages(run)


def test_a_queue_that_does_not_exist_is_named(cloud: Cloud) -> None:
    cloud.configure(launcher={"gpu": {"job_queue": "gpx", "job_definition": "worker"}})
    run = cloud.run()
    with pytest.raises(RequestRefused, match="gpx"):
        cloud.launch(run)
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "configuration"


def test_a_describe_that_is_throttled_leaves_the_run_alone(cloud: Cloud) -> None:
    run = cloud.run("waits")
    cloud.launch(run)
    begun(cloud, run)
    for code, status in (("TooManyRequestsException", 429), ("ServerException", 500), (None, 0)):
        cloud.batch.faults.append(Fault("DescribeJobs", code, status=status))
        [error] = wait_for("the fault", cloud.monitor)
        assert "describe" in error.message.lower()
        wait_for("an answer", lambda: cloud.monitor() == [])
        assert cloud.status(run) == "STARTED"


def test_a_job_that_aws_does_not_describe_yet_is_waited_for(cloud: Cloud) -> None:
    cloud.batch.describing_lag_s = 3600
    run = cloud.run("waits")
    cloud.launch(run)
    assert cloud.watch().waiting == 1
    begun(cloud, run)
    [error] = cloud.monitor()
    assert "too young" in error.message
    assert cloud.status(run) == "STARTED"


def test_a_job_that_aws_has_forgotten_fails_its_run(cloud: Cloud) -> None:
    cloud.batch.set_machines("gpu", Machines(count=0))
    cloud.batch.describing_lag_s = 3600
    run = cloud.run()
    cloud.launch(run)
    assert cloud.watch(LATER).failed == 1
    assert "no longer knows" in cloud.messages(run)


@pytest.mark.parametrize("code", ["ServerException", None], ids=["500", "connection cut"])
@pytest.mark.parametrize("lag_s", [0.0, 2.0], ids=["listed at once", "listed later"])
def test_a_lost_answer_to_submitting_makes_no_second_job(
    cloud: Cloud, code: str | None, lag_s: float
) -> None:
    cloud.batch.listing_lag_s = lag_s
    cloud.batch.faults.append(Fault("SubmitJob", code, status=500, after=True))
    run = cloud.run()
    cloud.launch(run)
    assert len(cloud.batch.jobs()) == 1
    assert cloud.batch.calls["ListJobs"] == 1
    cloud.until(run, "SUCCESS")


def test_two_jobs_of_one_run_become_one(cloud: Cloud) -> None:
    """Listed later than we wait: the second job is ended as soon as both are seen."""
    cloud.batch.set_machines("gpu", Machines(count=0))
    cloud.batch.listing_lag_s = 3600
    cloud.batch.faults.append(Fault("SubmitJob", None, after=True))
    run = cloud.run()
    cloud.launch(run)
    first, second = cloud.batch.jobs()
    cloud.batch.listing_lag_s = 0
    assert cloud.launcher.api.find("gpu", first["jobName"]) == first["jobId"]
    assert [job["status"] for job in cloud.batch.jobs()] == ["RUNNABLE", "FAILED"]
    assert second["jobName"] == first["jobName"]


# --- what Dagster asks besides ---


def test_the_debug_info_says_all_there_is(cloud: Cloud) -> None:
    run = cloud.run("waits")
    assert cloud.launcher.get_run_worker_debug_info(run) == "AWS Batch has no job of this run."
    cloud.launch(run)
    begun(cloud, run)
    info = cloud.launcher.get_run_worker_debug_info(cloud.fresh(run)) or ""
    for words in (
        cloud.job()["jobId"],
        "RUNNING",
        "job-queue/cpu",
        "worker:1",
        "logsV2",
        "waiting without end",
    ):
        assert words in info, words
    assert "waiting without end" not in (
        cloud.launcher.get_run_worker_debug_info(cloud.fresh(run), False) or ""
    )


def test_a_resumed_run_gets_a_job_of_its_own(cloud: Cloud) -> None:
    cloud.configure(
        run_monitoring={"enabled": True, "max_resume_run_attempts": 1, "poll_interval_seconds": 1}
    )
    run = cloud.run("waits")
    cloud.launch(run)
    begun(cloud, run)
    cloud.batch.kill_container(cloud.job()["jobId"])
    assert cloud.monitor() == []
    first, second = cloud.batch.jobs()
    assert second["jobName"] == first["jobName"][:-1] + "2"
    assert second["container"]["command"][2] == "resume_run"
    assert cloud.fresh(run).tags["batch_gpu/job_id"] == second["jobId"]
    wait_for("the resumed worker", lambda: "Started process for resuming job" in cloud.messages(run))


def test_a_run_without_a_job_is_not_healthy(cloud: Cloud) -> None:
    run = cloud.run()
    assert cloud.launcher.check_run_worker_health(run).status == WorkerStatus.NOT_FOUND
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "worker-lost"
    assert cloud.batch.calls == {}


def test_a_wrong_tag_is_refused_before_anything_is_submitted(cloud: Cloud) -> None:
    run = cloud.run(tags={"batch_gpu/config": '{"memory": 3}'})
    with pytest.raises(BatchGpuError, match="memory"):
        cloud.launch(run)
    assert cloud.fresh(run).tags["batch_gpu/failure"] == "configuration"
    assert cloud.batch.calls == {}
