"""The pure parts: what a run needs, what is asked of AWS, what AWS's words mean."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_gpu.compute import compute_class
from batch_gpu.config import JobConfig, LauncherConfig, config_schema, from_yaml, parse_tag
from batch_gpu.endings import blocked, ending_of, lost_to_reclaim, waited_too_long
from batch_gpu.errors import ConfigurationError
from batch_gpu.job_definitions import varied
from batch_gpu.jobs import JOB_ID_TAG, JOB_NAME_TAG, LONGEST_OVERRIDES, job_name, own_job_id, submit_request
from batch_gpu.links import job_url, log_url
from tests.batch_gpu.conftest import ROOT

GPU, CPU = {"batch_gpu/compute": "gpu"}, {"batch_gpu/compute": "cpu"}
STEPS = {"look": GPU, "think": CPU, "tell": {}, "look_at[?]": GPU}


@pytest.mark.parametrize(
    ("selected", "run_tags", "expected"),
    [
        (None, {}, "gpu"),
        (["look", "think"], {}, "gpu"),
        (["think"], {}, "cpu"),
        (["tell"], {}, "cpu"),
        ([], {}, "cpu"),
        (["look_at[x]"], {}, "gpu"),
        (["look_at[?]"], {}, "gpu"),
        (["a step of yesterday's plan"], {}, "cpu"),
        (["think"], GPU, "gpu"),
        (["look"], CPU, "cpu"),
    ],
)
def test_a_run_needs_what_its_selected_steps_need(
    selected: list[str] | None, run_tags: dict[str, str], expected: str
) -> None:
    assert compute_class(STEPS, selected, run_tags) == expected


@pytest.mark.parametrize(
    ("steps", "run_tags", "named"),
    [
        ({"look": {"batch_gpu/compute": "tpu"}}, {}, "Step look"),
        ({}, {"batch_gpu/compute": "GPU"}, "The run"),
    ],
)
def test_a_need_that_is_none_is_named(
    steps: dict[str, dict[str, str]], run_tags: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"{named}.*expected gpu or cpu"):
        compute_class(steps, None, run_tags)


SECTIONS: dict[str, Any] = {
    "gpu": {"job_queue": "gq", "job_definition": "gd", "gpus": 1, "environment": {"A": "1", "B": "2"}},
    "cpu": {"job_queue": "cq", "job_definition": "cd"},
}


@pytest.mark.parametrize(
    ("tag", "location", "expected"),
    [
        ({}, {}, (1, None, {"A": "1", "B": "2"})),
        ({}, {"image": "code:1"}, (1, "code:1", {"A": "1", "B": "2"})),
        (
            {},
            {"image": "code:1", "context": {"batch_gpu": {"gpu": {"gpus": 2, "environment": {"B": "3"}}}}},
            (2, "code:1", {"A": "1", "B": "3"}),
        ),
        ({}, {"context": {"k8s": {}, "batch_gpu": {"cpu": {"gpus": 2}}}}, (1, None, {"A": "1", "B": "2"})),
        (
            {"gpus": 4, "image": "run:1", "environment": {"B": "4"}},
            {"image": "code:1", "context": {"batch_gpu": {"gpu": {"gpus": 2, "environment": {"C": "3"}}}}},
            (4, "run:1", {"A": "1", "B": "4", "C": "3"}),
        ),
    ],
)
def test_the_code_location_and_then_the_run_take_precedence(
    tag: dict[str, Any], location: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    job = from_yaml(SECTIONS).job("gpu", {"batch_gpu/config": json.dumps(tag)}, **location)
    assert job.job_queue == "gq"
    assert (job.gpus, job.image, job.environment) == expected


def test_a_wrong_container_context_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"container context, under batch_gpu .* gpu\.memory"):
        from_yaml(SECTIONS).job("gpu", {}, context={"batch_gpu": {"gpu": {"memory": 1}}})


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ('{"memory": 1}', "memory"),
        ('{"gpus": "one"}', "gpus"),
        ('{"gpus": {"env": "SECRET"}}', "gpus"),
        ('{"environment": {"A": {"env": "SECRET"}}}', "environment"),
        ('{"submit_job": {"jobName": "another"}}', "jobName cannot be set"),
    ],
)
def test_a_wrong_tag_is_refused_by_name(tag: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_tag(tag)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SECTIONS, "compute": "cloud"}, "expected local or batch"),
        ({"gpu": SECTIONS["gpu"]}, r"run_launcher\.config\.cpu\.job_queue"),
        ({**SECTIONS, "cpu": {**SECTIONS["cpu"], "timeout_seconds": 59}}, "cpu.timeout_seconds is 59"),
        ({**SECTIONS, "gpu": {**SECTIONS["gpu"], "attempts": 11}}, "gpu.attempts is 11"),
    ],
)
def test_a_wrong_configuration_is_refused_at_start(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        from_yaml(config)


def test_locally_no_queue_is_needed() -> None:
    assert from_yaml({"compute": "local"}).compute == "local"


def test_every_field_is_documented_where_it_is_configured() -> None:
    schema = config_schema()
    assert set(schema) == set(LauncherConfig.model_fields)
    manual = (ROOT / "docs" / "batch_gpu.md").read_text()
    for name in [*schema, *JobConfig.model_fields]:
        assert f"`{name}`" in manual, name


RUN = "3f0c5a3e-8a52-4d5c-9f0e-0f3a7d6f2b11"


def request(run_tags: dict[str, str] | None = None, **job: Any) -> dict[str, Any]:
    return submit_request(
        name=job_name("dagster", RUN),
        job=JobConfig(job_queue="q", **job),
        job_definition="d:3",
        command=["dagster", "api", "execute_run", "{}"],
        run_id=RUN,
        dagster_job="analyze",
        run_tags=run_tags,
    )


def test_botocore_accepts_everything_that_can_be_asked_for() -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    asked = request(
        gpus=2,
        vcpus=8,
        memory_mib=30_000,
        timeout_seconds=3600,
        attempts=2,
        share_identifier="videos",
        scheduling_priority=7,
        environment={"A": "1"},
        aws_tags={"team": "vision"},
        submit_job={
            "dependsOn": [{"jobId": "another"}],
            "containerOverrides": {"instanceType": "g6.xlarge"},
        },
    )
    model = botocore.session.get_session().get_service_model("batch").operation_model("SubmitJob")
    assert ParamValidator().validate(asked, model.input_shape).generate_report() == ""
    assert asked["containerOverrides"]["resourceRequirements"] == [
        {"type": "GPU", "value": "2"},
        {"type": "VCPU", "value": "8"},
        {"type": "MEMORY", "value": "30000"},
    ]
    assert asked["retryStrategy"]["evaluateOnExit"][-1] == {"onReason": "*", "action": "EXIT"}


def test_no_gpu_is_asked_for_where_none_is_needed() -> None:
    assert request(gpus=0)["containerOverrides"]["resourceRequirements"] == []


def test_what_is_too_long_for_ecs_is_refused_before_it_is_submitted() -> None:
    """With room for what Batch itself adds: others met the limit of 8192 at 7,680."""
    free = LONGEST_OVERRIDES - len(json.dumps(request(environment={"A": ""})["containerOverrides"]))
    assert len(json.dumps(request(environment={"A": "x" * free})["containerOverrides"])) <= 7_680 - 128
    for job in (
        {"environment": {"A": "x" * (free + 1)}},
        {"submit_job": {"containerOverrides": {"x": "y" * LONGEST_OVERRIDES}}},
    ):
        with pytest.raises(ConfigurationError, match="ECS takes 8192"):
            request(**job)


def test_raw_parameters_are_merged_over_the_request() -> None:
    raw = {"propagateTags": False, "containerOverrides": {"instanceType": "g6.xlarge"}}
    plain, asked = request(), request(submit_job=raw)
    assert asked["propagateTags"] is False
    assert asked["containerOverrides"] == {**plain["containerOverrides"], "instanceType": "g6.xlarge"}


def test_a_jobs_tags_are_those_that_aws_takes_and_name_its_run() -> None:
    """Permissions to end jobs look at the run's tag, so that nothing else may set it."""
    run_tags = {"team": "시각 (vision)", "camera": "x" * 300, "dagster/run_id": "another"}
    tags = request(run_tags, aws_tags={"dagster/job": "another", "stage": "prod"})["tags"]
    assert tags == {
        "team": "시각 _vision_",
        "camera": "x" * 256,
        "stage": "prod",
        "dagster/run_id": RUN,
        "dagster/job": "analyze",
    }


@given(st.text(max_size=120))
def test_a_job_name_is_one_that_aws_takes_or_none(prefix: str) -> None:
    try:
        name = job_name(prefix, RUN, 1)
    except ConfigurationError:
        return
    assert len(name) <= 128
    assert name[0].isascii()
    assert name[0].isalnum()
    assert all(each.isascii() and (each.isalnum() or each in "-_") for each in name)
    assert name.endswith(f"{RUN}-2")


def test_a_parents_job_is_not_the_runs_own() -> None:
    parents = {JOB_NAME_TAG: job_name("dagster", "another-run"), JOB_ID_TAG: "1"}
    assert own_job_id(RUN, parents) is None
    assert own_job_id(RUN, {**parents, JOB_NAME_TAG: job_name("dagster", RUN)}) == "1"
    assert own_job_id(RUN, {JOB_NAME_TAG: job_name("dagster", RUN), JOB_ID_TAG: "none"}) is None


def job(status: str = "FAILED", **detail: Any) -> dict[str, Any]:
    return {"jobId": "j", "status": status, **detail}


@pytest.mark.parametrize(
    ("detail", "failure", "transient"),
    [
        ({"statusReason": "Host EC2 (instance i-1) terminated."}, "worker-lost", True),
        ({"statusReason": "Job attempt duration exceeded timeout"}, "timeout", True),
        ({"statusReason": "MISCONFIGURATION:SERVICE_ROLE_PERMISSIONS - role"}, "permission-denied", False),
        (
            {"statusReason": "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement…"},
            "configuration",
            False,
        ),
        (
            {
                "statusReason": "Canceled by JobStateTimeLimit action due to reason: "
                "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE"
            },
            "configuration",
            False,
        ),
        (
            {
                "statusReason": "Canceled by JobStateTimeLimit action due to reason: "
                "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"
            },
            "capacity",
            True,
        ),
        ({"statusReason": "Container Overrides length must be at most 8192"}, "configuration", False),
        (
            {
                "statusReason": "Essential container in task exited",
                "container": {
                    "exitCode": 137,
                    "reason": "OutOfMemoryError: Container killed due to memory usage",
                },
            },
            "worker-lost",
            True,
        ),
        (
            {"statusReason": "Essential container in task exited", "container": {"exitCode": 137}},
            "worker-lost",
            True,
        ),
        (
            {
                "statusReason": "Task failed to start",
                "attempts": [{"container": {"reason": "CannotPullContainerError: not found"}}],
            },
            "container-start",
            True,
        ),
        (
            {
                "statusReason": "Task failed to start",
                "container": {"reason": "ResourceInitializationError: unable to pull secrets"},
            },
            "container-start",
            True,
        ),
        (
            {"statusReason": "Essential container in task exited", "container": {"exitCode": 127}},
            "container-start",
            False,
        ),
        ({"statusReason": "An operator's reason", "isTerminated": True}, "worker-lost", False),
        (
            {"statusReason": "Essential container in task exited", "container": {"exitCode": 1}},
            "worker-lost",
            True,
        ),
        ({}, "worker-lost", True),
    ],
)
def test_aws_words_have_a_class(detail: dict[str, Any], failure: str, transient: bool) -> None:
    ending = ending_of(job(**detail))
    assert (ending.failure, ending.transient) == (failure, transient)
    assert str(detail.get("statusReason", "")) in ending.message
    # What is no fault of the run's work, so that another try of it is not one too many.
    assert ending.reclaimed == str(detail.get("statusReason")).startswith("Host EC2")


@given(st.text(), st.text(), st.one_of(st.none(), st.integers(0, 255)))
def test_any_words_have_a_class_and_are_quoted(status: str, reason: str, code: int | None) -> None:
    container = {"reason": reason} | ({} if code is None else {"exitCode": code})
    ending = ending_of(job(statusReason=status, container=container))
    assert status in ending.message
    assert reason in ending.message


def attempt(stopped_ms: int | None) -> dict[str, Any]:
    return {"statusReason": "Host EC2 (instance i-1) terminated.", "stoppedAt": stopped_ms}


@pytest.mark.parametrize(
    ("status", "attempts", "started_ms", "lost"),
    [
        ("RUNNING", [], 100, False),
        ("RUNNABLE", [attempt(200)], 100, True),
        ("RUNNABLE", [attempt(None)], None, True),
        ("STARTING", [attempt(200)], 100, True),
        ("RUNNING", [attempt(200)], 100, True),
        ("RUNNING", [attempt(200)], 300, False),
        ("STARTING", [attempt(200)], 300, False),
        ("RUNNING", [attempt(None)], 100, False),
        ("FAILED", [attempt(200)], 100, False),
    ],
)
def test_a_run_is_lost_with_the_attempt_that_began_it(
    status: str, attempts: list[dict[str, Any]], started_ms: int | None, lost: bool
) -> None:
    assert (lost_to_reclaim(job(status, attempts=attempts), started_ms) is not None) == lost


@pytest.mark.parametrize(
    ("reason", "patience_s", "failure", "transient", "remedy"),
    [
        # As AWS words them (user guide, "Jobs stuck in a RUNNABLE status").
        ("MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - CE(s) associated with the job queue cannot meet"
         " the CPU requirement of the job.", 0, "configuration", False, "larger machines"),
        ("MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement (vCPU/memory/GPU) is"
         " higher than that can be met by the CE(s) attached to the job queue.", 0, "configuration", False,
         "fewer"),
        ("MISCONFIGURATION:SERVICE_ROLE_PERMISSIONS – Batch service role has a permission issue.", 0,
         "permission-denied", False, "service role"),
        ("MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED - Your compute environment associated with"
         " this job queue has an unsupported instance type configuration.", 600, "configuration", False,
         "describe-instance-type-offerings"),
        ("ACTION_REQUIRED - CE(s) associated with the job queue are invalid.", 600, "configuration", False,
         "describe-compute-environments"),
        ("UNDETERMINED - Batch job is blocked, root cause is undetermined.", 1800, "capacity", True,
         "quotas"),
        ("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity requested for"
         " instance type [g6.xlarge]", None, "capacity", True, "quota"),
    ],
)  # fmt: skip
def test_a_job_that_waits_for_what_does_not_come_is_ended_in_time_with_its_own_remedy(
    reason: str, patience_s: int | None, failure: str, transient: bool, remedy: str
) -> None:
    stuck = job("RUNNABLE", createdAt=0, statusReason=reason)
    ending = blocked(stuck, 10**6)
    assert (ending is not None) == (patience_s is not None)
    if patience_s is not None:
        assert blocked(stuck, patience_s) == ending
        assert blocked(stuck, patience_s - 1) is None
    assert blocked({**stuck, "status": "RUNNING"}, 10**6) is None
    text = ending_of(stuck)
    assert (text.failure, text.transient) == (failure, transient)
    assert remedy in text.message


def test_only_waiting_jobs_wait_too_long() -> None:
    assert waited_too_long(job("RUNNABLE", createdAt=0), 60, 60_001) is not None
    assert waited_too_long(job("RUNNABLE", createdAt=0), 60, 60_000) is None
    assert waited_too_long(job("STARTING", createdAt=0), 60, 90_000) is None


BASE = {
    "jobDefinitionName": "worker",
    "jobDefinitionArn": "arn",
    "revision": 3,
    "status": "ACTIVE",
    "type": "container",
    "containerProperties": {
        "image": "old",
        "secrets": [{"name": "A", "valueFrom": "arn:a"}, {"name": "B", "valueFrom": "arn:b"}],
        "linuxParameters": {"initProcessEnabled": True},
    },
    "tags": {"aws:cloudformation:stack-name": "s", "team": "vision"},
}


def test_a_revision_changes_what_was_asked_for_and_nothing_else() -> None:
    revision = varied(BASE, JobConfig(image="new", secrets={"B": "arn:b2"}, shared_memory_mib=2048))
    assert revision["containerProperties"] == {
        "image": "new",
        "secrets": [{"name": "A", "valueFrom": "arn:a"}, {"name": "B", "valueFrom": "arn:b2"}],
        "linuxParameters": {"initProcessEnabled": True, "sharedMemorySize": 2048},
    }
    assert revision["tags"] == {"team": "vision"}
    assert not {"revision", "status", "jobDefinitionArn"} & set(revision)


def test_the_same_content_has_the_same_name() -> None:
    first, same = (
        varied(BASE, JobConfig(image="new")),
        varied(dict(reversed(BASE.items())), JobConfig(image="new")),
    )
    assert first["jobDefinitionName"] == same["jobDefinitionName"]
    assert first["jobDefinitionName"] != varied(BASE, JobConfig(image="newer"))["jobDefinitionName"]
    assert (
        len(varied({**BASE, "jobDefinitionName": "x" * 128}, JobConfig(image="i"))["jobDefinitionName"])
        == 128
    )


def test_links_lead_into_the_right_console() -> None:
    assert job_url("ap-northeast-2", "j").startswith("https://ap-northeast-2.console.aws.amazon.com/batch/")
    assert "console.amazonaws.cn" in job_url("cn-north-1", "j")
    assert log_url("ap-northeast-2", "/aws/batch/job", "worker/default/1").endswith(
        "#logsV2:log-groups/log-group/$252Faws$252Fbatch$252Fjob/log-events/worker$252Fdefault$252F1"
    )
