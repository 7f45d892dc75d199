"""Roles may do what the code does, and nothing else.

The calls are found in the code: a new one turns a test red until somebody grants it, and a permission that no
call needs any more does too.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore import xform_name

from tests.infra.stacks import resources, template

ROOT = Path(__file__).resolve().parents[2]
# What runs on AWS: not the local stack, the fake Batch, nor the uploader's own command; nor what makes alarms
# and log groups, which CloudFormation does there.
CODE = [
    path
    for folder in ("capstone_dagster", "batch_gpu")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"local", "testing", "render"} & set(path.parts) and path.name != "submit.py"
]
# Parsed when this file is collected: after other tests in one process CPython 3.11 may refuse to
# ("AST constructor recursion depth mismatch").
TREES = {path: ast.parse(path.read_text()) for path in CODE}
# What boto3 adds to its clients, in terms of what they call.
TRANSFERS = {
    "upload_file": ("s3:PutObject", "s3:AbortMultipartUpload"),
    "download_file": ("s3:GetObject",),
}
# Operations whose permission is not called like them, or not alone.
PERMISSIONS = {
    "s3:HeadObject": ("s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket"),
    "s3:GetObject": ("s3:GetObject", "s3:GetObjectVersion"),
    "s3:ListObjectsV2": ("s3:ListBucket",),
    "s3:ListObjectVersions": ("s3:ListBucketVersions",),
    "s3:DeleteObjects": ("s3:DeleteObject", "s3:DeleteObjectVersion"),
    "sqs:DeleteMessageBatch": ("sqs:DeleteMessage",),
    "sns:PublishBatch": ("sns:Publish",),
    "batch:SubmitJob": ("batch:SubmitJob", "batch:TagResource"),
    "batch:RegisterJobDefinition": ("batch:RegisterJobDefinition", "batch:TagResource", "iam:PassRole"),
}
# Calls that are not made on AWS.
ONLY_LOCAL = {
    "secretsmanager:ListSecrets": "the launcher's secrets_tag, which dagster.yaml does not use",
}
# Permissions that no call of ours in the code asks for, by role.
WITHOUT_A_CALL = {
    "DaemonRole": {
        "ssmmessages:*": "an operator's commands in the container",
    },
    "WebserverRole": {
        "s3:GetObject": "TickLogsInS3 shows what sensors logged",
        "s3:ListBucket": "the same",
        "cloudwatch:PutMetricData": "the health check's heartbeat (infra/image/healthcheck.py)",
        "ssmmessages:*": "the tunnel to the pages",
    },
    "WorkerRole": {},
    "AnalysisRole": {},
}
# The daemon does all that the code does, because its sensors, its launcher and an operator's commands run
# there; the others run parts of it.
MODULES = {
    "DaemonRole": [""],
    "WorkerRole": [
        "storage/sources.py",
        "storage/objects.py",
        "storage/object_versions.py",
        "models.py",
    ],
    "AnalysisRole": [
        "storage/sources.py",
        "storage/objects.py",
        "models.py",
    ],
    "WebserverRole": [],
}
# `Terminate` in the pages looks the run's job up and ends it.
WEBSERVER_ACTIONS = {"batch:TerminateJob", "batch:DescribeJobs", "batch:ListJobs"}
# AWS knows no resources for these.
ANY_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "batch:DescribeJobs",
    "batch:ListJobs",
    "batch:DescribeJobDefinitions",
    "cloudwatch:ListMetrics",
    "cloudwatch:PutMetricData",
    "ecs:DiscoverPollEndpoint",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def policies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Whose it is, and the statement, for every statement that allows something to a role."""
    for where, body in resources("AWS::IAM::Role", "AWS::IAM::ManagedPolicy"):
        properties, owner = body["Properties"], where.rpartition("/")[2]
        documents = [(owner, properties["PolicyDocument"])] if "PolicyDocument" in properties else []
        for each in properties.get("Policies", []):
            if "Fn::If" in each:  # under a condition: `DaemonRole if WebInDaemonTask`
                condition, policy, _ = each["Fn::If"]
                documents.append((f"{owner} if {condition}", policy["PolicyDocument"]))
            else:
                documents.append((owner, each["PolicyDocument"]))
        for whose, document in documents:
            for statement in document["Statement"]:
                yield whose, statement


def granted(role: str) -> set[str]:
    return {action for owner, each in policies() if owner == role for action in as_list(each["Action"])}


@cache
def operations() -> dict[str, set[str]]:
    """Method name → `service:Operation`, of the services that the code has clients for."""
    session, found = botocore.session.get_session(), dict[str, set[str]]()
    for service in ("s3", "sqs", "sns", "batch", "logs", "cloudwatch", "secretsmanager"):
        for operation in session.get_service_model(service).operation_names:
            found.setdefault(xform_name(operation), set()).add(f"{service}:{operation}")
    return found


def calls(path: Path) -> set[str]:
    """The AWS operations that a file calls: as methods, to paginators, or by name as batch_gpu does."""
    found: set[str] = set()
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
        if node.func.attr in ("call", "patiently", "pages") and len(texts) >= 2:
            service, name = str(texts[0]), str(texts[1])
            found |= {each for each in operations()[name] if each.startswith(f"{service}:")}
        elif node.func.attr == "get_paginator":
            found |= operations()[str(texts[0])]
        elif node.func.attr in operations() and node.keywords:
            found |= operations()[node.func.attr]
        elif node.func.attr in TRANSFERS:
            found.add(node.func.attr)
    return found


def needed(role: str) -> set[str]:
    names = {
        call
        for path in CODE
        for call in calls(path)
        if any(path.as_posix().endswith(module) for module in MODULES[role])
    }
    return {
        action
        for name in names - set(ONLY_LOCAL)
        for action in TRANSFERS.get(name, PERMISSIONS.get(name, (name,)))
    }


def test_the_scan_finds_the_calls() -> None:
    found = {call for path in CODE for call in calls(path)}
    assert {"sqs:ReceiveMessage", "s3:HeadObject", "s3:PutObject", "batch:SubmitJob"} <= found
    assert {"batch:RegisterJobDefinition", "logs:GetLogEvents", "s3:ListObjectsV2"} <= found
    assert {"logs:PutLogEvents", "logs:FilterLogEvents", *ONLY_LOCAL} <= found


def test_metrics_travel_in_log_lines_on_aws() -> None:
    """Where they do not, the roles need PutMetricData."""
    text = str(template("application"))
    assert "{'Name': 'CAPSTONE_METRICS', 'Value': 'emf'}" in text
    assert text.count("'CAPSTONE_METRICS'") == text.count("'Value': 'emf'")


@pytest.mark.parametrize("role", ["DaemonRole", "WorkerRole", "AnalysisRole"])
def test_a_role_may_do_what_its_code_calls_and_no_more(role: str) -> None:
    extra = WITHOUT_A_CALL[role]

    missing = needed(role) - granted(role)
    assert not missing, f"{role} lacks {missing}"
    unused = {
        action
        for action in granted(role) - needed(role)
        if action not in extra and f"{action.split(':')[0]}:*" not in extra
    }
    assert not unused, f"{role} may {unused}, which no call needs"


@pytest.mark.parametrize("queue", ["upload", "dead-letter"])
def test_both_queues_can_be_counted(queue: str) -> None:
    """The same calls go to either queue, and a permission for one of them is none for the other."""
    allowed = {
        action
        for owner, each in policies()
        if owner == "DaemonRole" and each["Resource"] == {"Fn::ImportValue": f"capstone-{queue}-queue-arn"}
        for action in as_list(each["Action"])
    }
    assert {"sqs:GetQueueAttributes", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:SendMessage"} <= allowed


def test_either_topic_can_be_published_to() -> None:
    [statement] = [
        each
        for owner, each in policies()
        if owner == "DaemonRole" and "sns:Publish" in as_list(each["Action"])
    ]
    names = {each["Fn::ImportValue"] for each in as_list(statement["Resource"])}
    assert names == {"capstone-alert-topic", "capstone-notice-topic"}


def test_the_web_server_shows_and_ends_runs_and_no_more() -> None:
    extra = {action for action in WITHOUT_A_CALL["WebserverRole"] if "*" not in action}
    exec_into = {action for action in granted("WebserverRole") if action.startswith("ssmmessages:")}

    assert granted("WebserverRole") == WEBSERVER_ACTIONS | needed("WebserverRole") | extra | exec_into


def test_the_pages_of_events_read_and_sign_uploads_and_no_more() -> None:
    allowed = {
        (action, str(statement["Resource"]).count("capstone-raw-bucket"))
        for owner, statement in policies()
        if owner == "BrowseRole"
        for action in as_list(statement["Action"])
    }
    raw, derived = 1, 0
    assert allowed == {
        ("s3:GetObject", raw),
        ("s3:GetObjectVersion", raw),
        ("s3:PutObject", raw),
        ("s3:GetObject", derived),
        ("s3:ListBucket", derived),
    }


def test_the_daemons_task_may_do_what_a_web_server_in_it_does() -> None:
    allowed = granted("DaemonRole") | granted("DaemonRole if WebInDaemonTask")
    assert granted("WebserverRole") <= allowed
    assert granted("DaemonRole if WebInDaemonTask") == {"cloudwatch:PutMetricData"}


def test_no_action_is_a_pattern() -> None:
    for owner, statement in policies():
        for action in as_list(statement["Action"]):
            assert re.fullmatch(r"[a-z0-9-]+:[A-Za-z0-9]+", action), f"{owner}: {action}"


def test_any_resource_only_where_aws_knows_none() -> None:
    for owner, statement in policies():
        if "*" in as_list(statement["Resource"]):
            unbound = set(as_list(statement["Action"])) - ANY_RESOURCE
            assert not unbound, f"{owner}/{statement['Sid']} may {unbound} anything"


def test_every_statement_has_a_name() -> None:
    names = [(owner, statement["Sid"]) for owner, statement in policies()]
    assert len(names) == len(set(names))


def test_roles_are_handed_only_to_containers_and_only_the_jobs() -> None:
    [statement] = [each for _, each in policies() if "iam:PassRole" in as_list(each["Action"])]

    assert statement["Resource"] == [
        {"Fn::GetAtt": ["AnalysisRole", "Arn"]},
        {"Fn::GetAtt": ["WorkerRole", "Arn"]},
        {"Fn::GetAtt": ["ExecutionRole", "Arn"]},
    ]
    assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}


def test_who_may_take_a_role() -> None:
    trusted = {
        where: [each["Principal"] for each in body["Properties"]["AssumeRolePolicyDocument"]["Statement"]]
        for where, body in resources("AWS::IAM::Role")
    }
    machine = trusted.pop("compute/MachineRole")

    assert machine == [{"Service": "ec2.amazonaws.com"}]
    assert {str(each) for each in trusted.values()} == {"[{'Service': 'ecs-tasks.amazonaws.com'}]"}


def test_aws_own_policies_are_none_but_for_a_shell_that_was_asked_for() -> None:
    """They allow more than ours."""
    attached = {
        where: body["Properties"]["ManagedPolicyArns"]
        for where, body in resources("AWS::IAM::Role")
        if "ManagedPolicyArns" in body["Properties"]
    }
    ours = {"Ref": "ExecutionPolicy"}
    foreign = {where: arns for where, arns in attached.items() if arns != [ours]}

    assert list(foreign) == ["compute/MachineRole"]
    condition, shell, otherwise = foreign["compute/MachineRole"]["Fn::If"]
    assert (condition, otherwise) == ("HasShell", {"Ref": "AWS::NoValue"})
    assert "AmazonSSMManagedInstanceCore" in str(shell)
    assert template("compute")["Parameters"]["ShellOnMachines"]["Default"] == "false"


def test_a_machine_may_do_what_the_ecs_agent_does_and_no_more() -> None:
    """Neither images nor logs: jobs have an execution role for those."""
    assert {action.partition(":")[0] for action in granted("MachineRole")} == {"ecs"}
    for _, body in resources("AWS::Batch::JobDefinition"):
        assert "ExecutionRoleArn" in body["Properties"]["ContainerProperties"]


@pytest.mark.parametrize("role", ["DaemonRole", "WebserverRole"])
def test_only_jobs_of_the_launcher_can_be_ended(role: str) -> None:
    from batch_gpu.config import JobConfig
    from batch_gpu.jobs import submit_request

    [statement] = [each for owner, each in policies() if owner == role and each["Sid"] == "EndJobs"]
    [condition] = statement["Condition"]["Null"].items()
    request = submit_request(
        name="n", job=JobConfig(job_queue="q"), job_definition="d", command=[], run_id="r", dagster_job="j"
    )

    assert condition == (f"aws:ResourceTag/{next(iter(request['tags']))}", "false")


def test_the_administrators_password_goes_to_the_daemons_task_alone() -> None:
    holders = {owner for owner, each in policies() if "capstone-administrator-secret" in str(each)}
    tasks = {
        name
        for name, body in template("application")["Resources"].items()
        if body["Properties"].get("ExecutionRoleArn") == {"Fn::GetAtt": ["DaemonExecutionRole", "Arn"]}
    }

    assert holders == {"DaemonExecutionRole"}
    assert tasks == {"DaemonTask"}


def test_what_decodes_untrusted_video_deletes_nothing() -> None:
    definition = template("application")["Resources"]["GpuJobDefinition"]["Properties"]
    assert definition["ContainerProperties"]["JobRoleArn"] == {"Fn::GetAtt": ["AnalysisRole", "Arn"]}
    assert not {action for action in granted("AnalysisRole") if "Delete" in action}
