"""The templates as data, and their stacks on an emulator, with what that emulator cannot take made plain."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cfnlint.decode.cfn_yaml import load

from capstone_dagster.local.aws import client
from tests.support.waiting import wait_for

INFRA = Path(__file__).resolve().parents[2] / "infra"
# In the order in which they are deployed: each imports from those before it.
ORDER = ("network", "logs", "data", "compute", "application", "observability")

# What each emulator's CloudFormation cannot take. ministack refuses templates that name other types than its
# own, and alarms of metric math; moto leaves most of them out in silence, and breaks on a database with a
# parameter group of its own.
NOT_ON: dict[str, frozenset[str]] = {
    "ministack": frozenset(
        {
            "AWS::ApplicationAutoScaling::ScalableTarget",
            "AWS::ApplicationAutoScaling::ScalingPolicy",
            "AWS::Batch::ComputeEnvironment",
            "AWS::Batch::JobDefinition",
            "AWS::Batch::JobQueue",
            "AWS::CloudWatch::AnomalyDetector",
            "AWS::CloudWatch::CompositeAlarm",
            "AWS::EC2::EIP",
            "AWS::EC2::NatGateway",
            "AWS::EC2::SecurityGroupEgress",
            "AWS::EC2::SecurityGroupIngress",
            "AWS::Logs::QueryDefinition",
            "AWS::ServiceDiscovery::PrivateDnsNamespace",
            "AWS::ServiceDiscovery::Service",
        }
    ),
    "moto": frozenset(
        {
            "AWS::ApplicationAutoScaling::ScalableTarget",
            "AWS::ApplicationAutoScaling::ScalingPolicy",
            "AWS::CloudWatch::Alarm",
            "AWS::CloudWatch::AnomalyDetector",
            "AWS::CloudWatch::CompositeAlarm",
            "AWS::Cognito::UserPool",
            "AWS::Cognito::UserPoolClient",
            "AWS::Cognito::UserPoolDomain",
            "AWS::Logs::QueryDefinition",
            "AWS::RDS::DBInstance",
            "AWS::S3::BucketPolicy",
            "AWS::SecretsManager::Secret",
            "AWS::ServiceDiscovery::PrivateDnsNamespace",
            "AWS::ServiceDiscovery::Service",
            "AWS::SNS::Subscription",
            "AWS::SQS::QueuePolicy",
        }
    ),
}
# In the shape of an ARN, because policies are checked.
STAND_IN = "arn:aws:none:::not-on-this-emulator"


@cache
def template(name: str) -> dict[str, Any]:
    """A template as plain data, its functions in their long form."""
    return dict(json.loads(json.dumps(load(str(INFRA / f"{name}.yaml")))))


def resources(*types: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`template/Name` and body of all resources of these types, or of any type."""
    for name in ORDER:
        for logical_id, body in template(name)["Resources"].items():
            if not types or body["Type"] in types:
                yield f"{name}/{logical_id}", body


def task_containers(task: Mapping[str, Any], *, web_in_daemon_task: bool = False) -> Iterator[dict[str, Any]]:
    """The containers of a task definition, for a choice of `WebserverPlace`."""
    for each in task["Properties"]["ContainerDefinitions"]:
        if "Fn::If" not in each:
            yield each
        elif web_in_daemon_task:
            condition, chosen, _ = each["Fn::If"]
            assert condition == "WebInDaemonTask"
            yield chosen


def without(body: Mapping[str, Any], types: frozenset[str]) -> dict[str, Any]:
    """A template without the resources of some types; what refers to them gets a word in their place."""
    gone = {name for name, resource in body["Resources"].items() if resource["Type"] in types}

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("Ref") in gone or value.get("Fn::GetAtt", [""])[0] in gone:
                return STAND_IN
            return {key: cleaned(each) for key, each in value.items()}
        return [cleaned(each) for each in value] if isinstance(value, list) else value

    kept = {name: cleaned(each) for name, each in body["Resources"].items() if name not in gone}
    for each in kept.values():
        waited_for = each.get("DependsOn", [])
        if set([waited_for] if isinstance(waited_for, str) else waited_for) & gone:
            del each["DependsOn"]
    return {**{key: cleaned(each) for key, each in body.items() if key != "Resources"}, "Resources": kept}


def without_optional_elements(value: Any) -> Any:
    """A template without the elements of lists that a condition may leave out: moto leaves a hole there."""
    if isinstance(value, dict):
        cleaned = {key: _arguments if key == "Fn::If" else without_optional_elements for key in value}
        return {key: cleaned[key](each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_optional_elements(each) for each in value if not _is_optional(each)]
    return value


def _arguments(choice: list[Any]) -> list[Any]:
    return [without_optional_elements(each) for each in choice]


def _is_optional(element: Any) -> bool:
    return isinstance(element, dict) and element.get("Fn::If", [None])[-1] == {"Ref": "AWS::NoValue"}


def without_metric_math(body: Mapping[str, Any]) -> dict[str, Any]:
    """A template without the alarms whose value is computed."""
    computed = {
        name: {**each, "Type": "computed"} if "Metrics" in each.get("Properties", {}) else each
        for name, each in body["Resources"].items()
    }
    return without({**body, "Resources": computed}, frozenset({"computed"}))


def deploy(endpoint_url: str, name: str, body: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
    """Create a stack and wait until the emulator says that it is complete, which alone proves nothing."""
    cloudformation = client("cloudformation", endpoint_url)
    stack = f"capstone-{name}"
    # moto makes lists of those parameters only that are given, not of defaults.
    declared = body.get("Parameters", {})
    lists = {key: each["Default"] for key, each in declared.items() if each["Type"] == "CommaDelimitedList"}
    # ministack takes no template from a bucket, so what is for people is left out.
    bare = {
        name: {key: value for key, value in each.items() if key != "Description"}
        for name, each in declared.items()
    }
    cloudformation.create_stack(
        StackName=stack,
        TemplateBody=json.dumps({**body, "Parameters": bare}, separators=(",", ":")),
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value} for key, value in {**lists, **parameters}.items()
        ],
        Capabilities=["CAPABILITY_IAM"],
    )

    def status() -> str | None:
        found = str(cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"])
        return None if found.endswith("IN_PROGRESS") else found

    reached = wait_for(f"stack {stack}", status)
    events = cloudformation.describe_stack_events(StackName=stack)["StackEvents"]
    reasons = [each.get("ResourceStatusReason") for each in events if "FAILED" in each["ResourceStatus"]]
    assert reached == "CREATE_COMPLETE", reasons


def outputs(endpoint_url: str, name: str) -> dict[str, str]:
    """The outputs of a stack that was deployed."""
    stacks = client("cloudformation", endpoint_url).describe_stacks(StackName=f"capstone-{name}")["Stacks"]
    return {each["OutputKey"]: each["OutputValue"] for each in stacks[0].get("Outputs", [])}
