"""What CloudFormation writes in AWS is what the list says, and what boto3 is asked for elsewhere."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode.cfn_yaml import loads

from capstone_dagster.catalog import aws_metrics as aws
from capstone_dagster.catalog import metrics as own
from capstone_dagster.catalog.alarms import ALARMS
from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.catalog.model import Alarm, Dashboard, Graph, Series, Words
from capstone_dagster.catalog.render import requests
from capstone_dagster.catalog.render.cloudformation import logs_template, observability_template
from capstone_dagster.catalog.render.dashboards import COLUMNS, widgets
from capstone_dagster.catalog.render.deployment import DEPLOYMENT, filled, local_names, open_names

ROOT = Path(__file__).resolve().parents[2]
HAS_ADDRESS = frozenset({"HasAddress"})
TYPES = {
    "AWS::Logs::LogGroup": "log group",
    "AWS::Logs::QueryDefinition": "saved query",
    "AWS::CloudWatch::Alarm": "alarm",
    "AWS::CloudWatch::CompositeAlarm": "composite alarm",
    "AWS::CloudWatch::AnomalyDetector": "anomaly detector",
    "AWS::CloudWatch::Dashboard": "dashboard",
}


@cache
def committed(name: str) -> dict[str, Any]:
    return parsed((ROOT / "infra" / f"{name}.yaml").read_text())


def parsed(text: str) -> dict[str, Any]:
    return dict(json.loads(json.dumps(loads(text))))


def deployed(body: Mapping[str, Any], load_balancer: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name, the properties that CloudFormation would come to, spelled as the APIs spell them."""
    names = local_names()
    values = {known.pseudo: names[key] for key, known in DEPLOYMENT.items() if known.pseudo}
    values |= {known.export: names[key] for key, known in DEPLOYMENT.items() if known.export}
    for key, parameter in body.get("Parameters", {}).items():
        values[key] = parameter["Default"]
    values["LoadBalancer"] = names["load_balancer"] if load_balancer else ""

    def value_of(part: Any, known: Mapping[str, Any]) -> Any:
        if isinstance(part, list):
            return [value_of(each, known) for each in part]
        if not isinstance(part, dict):
            return part
        match list(part.items()):
            case [("Ref", name)]:
                # A resource's reference is its name.
                return known[name] if name in known else property_name(body["Resources"][name])
            case [("Fn::ImportValue", name)]:
                return known[name]
            case [("Fn::Equals", [one, other])]:
                return value_of(one, known) == value_of(other, known)
            case [("Fn::Not", [one])]:
                return not value_of(one, known)
            case [("Fn::If", [condition, one, other])]:
                return value_of(one if conditions[condition] else other, known)
            case [("Fn::Sub", [text, also])]:
                return substituted(
                    text, {**known, **{key: value_of(each, known) for key, each in also.items()}}
                )
            case [("Fn::Sub", text)]:
                return substituted(text, known)
        return {key: value_of(each, known) for key, each in part.items()}

    def substituted(text: str, known: Mapping[str, Any]) -> str:
        return re.sub(r"\$\{([\w:]+)\}", lambda found: str(value_of({"Ref": found[1]}, known)), text)

    conditions = {key: value_of(each, values) for key, each in body.get("Conditions", {}).items()}
    found = {}
    for resource in body["Resources"].values():
        if not conditions.get(resource.get("Condition"), True):
            continue
        kind = TYPES[resource["Type"]]
        properties = value_of(resource["Properties"], values)
        if kind in ("log group", "saved query"):  # whose API begins names with a small letter
            properties = {key[0].lower() + key[1:]: each for key, each in properties.items()}
        name = property_name(resource)
        assert (kind, name) not in found
        found[kind, name] = properties
    return found


def property_name(resource: Mapping[str, Any]) -> str:
    properties = resource["Properties"]
    if resource["Type"] == "AWS::CloudWatch::AnomalyDetector":
        properties = properties["SingleMetricAnomalyDetector"]
    for key in ("AlarmName", "DashboardName", "LogGroupName", "MetricName", "Name"):
        if key in properties:
            return str(properties[key])
    raise AssertionError(f"no name in {properties}")


def normal(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """With a dashboard as what it means, not as how its JSON is spaced."""
    return {key: json.loads(each) if key == "DashboardBody" else each for key, each in parameters.items()}


@pytest.mark.parametrize("load_balancer", [True, False])
def test_the_templates_write_every_alarm_dashboard_query_and_group_of_the_list(load_balancer: bool) -> None:
    conditions = HAS_ADDRESS if load_balancer else frozenset()
    wanted = {
        (each.kind, each.name): normal(filled(each.parameters, local_names()))
        for each in requests.everything(conditions)
        if each.condition in (None, *conditions)
    }
    written = deployed(committed("logs"), load_balancer) | deployed(committed("observability"), load_balancer)

    assert {key: normal(each) for key, each in written.items()} == wanted
    assert len(wanted) > 50


def test_log_groups_keep_their_names_in_the_stack() -> None:
    """Under another one CloudFormation would delete the group with its lines, and fail to make it again."""
    names = {key: each["Properties"]["LogGroupName"] for key, each in committed("logs")["Resources"].items()}

    assert names == {
        "IntakeLogs": "/capstone/intake",
        "BatchJobLogs": "/aws/batch/job",
        "VideoAnalysisLogs": "/capstone/video-analysis",
        "WebserverLogs": "/ecs/capstone-webserver",
        "DaemonLogs": "/ecs/capstone-daemon",
    }
    assert parsed(logs_template(LOG_GROUPS)) == committed("logs")


def test_every_alarm_notifies_once_and_never_beside_its_composite() -> None:
    asked = {each.name: each.parameters for each in requests.alarms(ALARMS)}
    told = {name for name, each in asked.items() if each["AlarmActions"]}

    for alarm in ALARMS:
        tellers = [
            name
            for name in told
            if name == alarm.name or f'ALARM("{alarm.name}")' in asked[name].get("AlarmRule", "")
        ]
        assert len(tellers) == 1, f"{alarm.name} is told of by {tellers}"


def test_a_notice_says_what_happened_where_to_read_on_and_who_is_called() -> None:
    asked = {each.name: filled(each.parameters, local_names()) for each in requests.alarms(ALARMS)}
    for alarm in ALARMS:
        text = asked[alarm.name]["AlarmDescription"]
        for part in (alarm.meaning, f"docs/runbook.md#{alarm.runbook}", alarm.owner, alarm.look_at[0]):
            assert part in text
    for name, parameters in asked.items():
        if parameters["AlarmActions"]:
            assert "Runbook: docs/runbook.md#" in parameters["AlarmDescription"], name
            assert "Owner: " in parameters["AlarmDescription"], name


def alarm(name: str, *series: Series, **changes: Any) -> Alarm:
    """An alarm like any other, apart from what is said of it."""
    usual: dict[str, Any] = {
        "threshold": 80,
        "comparison": "GreaterThanThreshold",
        "period_s": 300,
        "periods": 2,
        "datapoints": 1,
        "missing": "ignore",
        "why_missing": "",
        "severity": "page",
        "owner": "somebody",
        "runbook": "a-page",
        "look_at": ("a dial",),
    }
    return Alarm(name, "It is so.", series, **{**usual, **changes})


CPU = Series("cpu", aws.DATABASE_CPU, "Average")
FAILED = Series("failed", own.RUNS_FAILED, "Sum", {"FailureClass": "timeout"})


def rendered(*alarms: Alarm, dashboards: tuple[Dashboard, ...] = ()) -> dict[str, Any]:
    return dict(parsed(observability_template(alarms, (), dashboards, ()))["Resources"])


def test_an_alarm_of_one_series_compares_it_by_its_deployed_name() -> None:
    properties = rendered(alarm("High", CPU))["High"]["Properties"]

    assert properties["Dimensions"] == [
        {"Name": "DBInstanceIdentifier", "Value": {"Fn::ImportValue": "capstone-database"}}
    ]
    assert (properties["Namespace"], properties["MetricName"]) == ("AWS/RDS", "CPUUtilization")
    assert (properties["Statistic"], properties["Period"], properties["Threshold"]) == ("Average", 300, 80)
    assert (properties["EvaluationPeriods"], properties["DatapointsToAlarm"]) == (2, 1)
    assert "Metrics" not in properties


def test_a_percentile_is_an_extended_statistic() -> None:
    properties = rendered(alarm("Slow", Series("p", own.RUN_DURATION, "p95")))["Slow"]["Properties"]
    assert properties["ExtendedStatistic"] == "p95"
    assert "Statistic" not in properties


def test_an_alarm_of_an_expression_watches_it_alone() -> None:
    metrics = rendered(alarm("Rate", FAILED, CPU, expression="failed/cpu"))["Rate"]["Properties"]["Metrics"]

    assert [(each["Id"], each["ReturnData"]) for each in metrics] == [
        ("failed", False),
        ("cpu", False),
        ("watched", True),
    ]
    assert metrics[0]["MetricStat"]["Metric"]["Dimensions"] == [
        {"Name": "Environment", "Value": {"Fn::ImportValue": "capstone-environment"}},
        {"Name": "FailureClass", "Value": "timeout"},
    ]


def test_an_explained_alarm_waits_for_its_causes_and_refers_to_them_by_reference() -> None:
    one, other = alarm("One", CPU), alarm("Other", CPU)
    effect = alarm("Effect", FAILED, causes=("One", "Other"), wait_s=90, extension_s=600)
    found = rendered(one, other, effect)

    assert found["EffectCauses"]["Properties"]["AlarmRule"] == {
        "Fn::Sub": 'ALARM("${One}") OR ALARM("${Other}")'
    }
    assert found["EffectCauses"]["Properties"]["AlarmActions"] == []
    teller = found["EffectUnexplained"]["Properties"]
    assert teller["ActionsSuppressor"] == {"Ref": "EffectCauses"}
    assert (teller["ActionsSuppressorWaitPeriod"], teller["ActionsSuppressorExtensionPeriod"]) == (90, 600)
    assert teller["AlarmActions"] == [{"Fn::ImportValue": "capstone-alert-topic"}]
    assert found["Effect"]["Properties"]["AlarmActions"] == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (alarm("Two", CPU, FAILED), "Two has 2 series"),
        (alarm("Long", CPU, look_at=("x" * 900,)), "Long: its description has 9"),
    ],
)
def test_an_alarm_that_aws_would_refuse_is_not_rendered(wrong: Alarm, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rendered(wrong)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="High is declared twice"):
        rendered(alarm("High", CPU), alarm("High", FAILED))


def test_what_no_deployment_knows_is_refused() -> None:
    with pytest.raises(KeyError, match="expected one of"):
        open_names({"Dimensions": ["${moon}"]})


def test_widgets_fill_rows_from_the_left_and_never_overlap() -> None:
    one = Graph("one", (CPU,), width=12)
    high = Graph("high", (CPU,), width=8, height=9)
    dashboard = Dashboard("d", (Words("# d"), one, high, one, Graph("c", (CPU,), condition="HasAddress")))
    places = [(each["x"], each["y"], each["width"], each["height"]) for _, each in widgets(dashboard)]

    assert places == [(0, 0, 24, 2), (0, 2, 12, 6), (12, 2, 8, 9), (0, 11, 12, 6), (0, 17, 8, 6)]


@pytest.mark.parametrize(
    ("those", "says"),
    [
        ((Words("x", width=COLUMNS + 1),), "'x' is 25 wide"),
        ((Graph("a", (CPU,), condition="HasAddress"), Words("after")), "'after' stands after"),
    ],
)
def test_a_dashboard_with_a_hole_or_too_wide_is_refused(those: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(widgets(Dashboard("d", those)))
