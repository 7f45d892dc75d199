"""The committed templates create in AWS what the catalog lists, in terms that AWS's APIs accept."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import validate_parameters
from cfnlint.decode.cfn_yaml import loads

from capstone_dagster.catalog import aws_metrics as aws
from capstone_dagster.catalog import metrics as own
from capstone_dagster.catalog.alarms import ALARMS, ANOMALY_ALARMS
from capstone_dagster.catalog.composites import composites
from capstone_dagster.catalog.dashboard import DASHBOARDS
from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.catalog.model import (
    Alarm,
    Composite,
    Dashboard,
    Graph,
    Metric,
    MissingData,
    Series,
    Words,
)
from capstone_dagster.catalog.queries import QUERIES
from capstone_dagster.catalog.render.cloudformation import logs_template, observability_template
from capstone_dagster.catalog.render.dashboards import COLUMNS, widgets
from capstone_dagster.catalog.render.deployment import DEPLOYMENT, open_names
from tests.catalog.deployment import NAMES, body, filled

ROOT = Path(__file__).resolve().parents[2]
ALWAYS: frozenset[str] = frozenset()
HAS_ADDRESS = frozenset({"HasAddress"})
# The API that each kind of resource stands for; CloudFormation spells the properties the same.
OPERATIONS = {
    "AWS::Logs::LogGroup": None,  # two calls of the API
    "AWS::Logs::QueryDefinition": ("logs", "PutQueryDefinition"),
    "AWS::CloudWatch::Alarm": ("cloudwatch", "PutMetricAlarm"),
    "AWS::CloudWatch::CompositeAlarm": ("cloudwatch", "PutCompositeAlarm"),
    "AWS::CloudWatch::AnomalyDetector": ("cloudwatch", "PutAnomalyDetector"),
    "AWS::CloudWatch::Dashboard": ("cloudwatch", "PutDashboard"),
}
Resources = dict[tuple[str, str], dict[str, Any]]


@cache
def committed(name: str) -> dict[str, Any]:
    return parsed((ROOT / "infra" / f"{name}.yaml").read_text())


def parsed(text: str) -> dict[str, Any]:
    return dict(json.loads(json.dumps(loads(text))))


@cache
def deployed(conditions: frozenset[str]) -> Resources:
    """By type and name, the properties to which CloudFormation resolves the committed templates."""
    return resolved(committed("logs"), conditions) | resolved(committed("observability"), conditions)


def of_type(kind: str, conditions: frozenset[str] = HAS_ADDRESS) -> dict[str, dict[str, Any]]:
    return {name: each for (found, name), each in deployed(conditions).items() if found == f"AWS::{kind}"}


def resolved(template: Mapping[str, Any], conditions_met: frozenset[str]) -> Resources:
    values = {known.pseudo or known.export: NAMES[key] for key, known in DEPLOYMENT.items()}
    for key, parameter in template.get("Parameters", {}).items():
        values[key] = str(parameter["Default"])
    values["LoadBalancer"] = NAMES["load_balancer"] if conditions_met else ""

    def value_of(part: Any, known: Mapping[str, Any]) -> Any:
        if isinstance(part, list):
            return [value_of(each, known) for each in part]
        if not isinstance(part, dict):
            return part
        match list(part.items()):
            case [("Ref", name)]:
                # A resource's reference is its name.
                return known[name] if name in known else property_name(template["Resources"][name])
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

    conditions = {key: value_of(each, values) for key, each in template.get("Conditions", {}).items()}
    found: Resources = {}
    for resource in template["Resources"].values():
        if not conditions.get(resource.get("Condition"), True):
            continue
        named = {**resource, "Properties": value_of(resource["Properties"], values)}
        key = resource["Type"], property_name(named)
        assert key not in found
        found[key] = named["Properties"]
    return found


def property_name(resource: Mapping[str, Any]) -> str:
    properties = resource["Properties"]
    if resource["Type"] == "AWS::CloudWatch::AnomalyDetector":
        properties = properties["SingleMetricAnomalyDetector"]
    for key in ("AlarmName", "DashboardName", "LogGroupName", "MetricName", "Name"):
        if key in properties:
            return str(properties[key])
    raise AssertionError(f"no name in {properties}")


@pytest.mark.parametrize("conditions", [ALWAYS, HAS_ADDRESS], ids=["no-address", "address"])
def test_the_templates_create_every_entry_of_the_catalog_and_nothing_else(conditions: frozenset[str]) -> None:
    def names(entries: Any) -> set[str]:
        return {each.name for each in entries if getattr(each, "condition", None) in (None, *conditions)}

    wanted = {
        "Logs::LogGroup": names(LOG_GROUPS),
        "Logs::QueryDefinition": {f"capstone/{name}" for name in names(QUERIES)},
        "CloudWatch::Alarm": names((*ALARMS, *ANOMALY_ALARMS)),
        "CloudWatch::CompositeAlarm": names(composites(ALARMS)),
        "CloudWatch::AnomalyDetector": {each.series.metric.name for each in ANOMALY_ALARMS},
        "CloudWatch::Dashboard": names(DASHBOARDS),
    }

    assert {kind: set(of_type(kind, conditions)) for kind in wanted} == wanted
    assert len(deployed(conditions)) == sum(map(len, wanted.values()))
    for dashboard in DASHBOARDS:
        written = of_type("CloudWatch::Dashboard", conditions)[dashboard.name]["DashboardBody"]
        assert json.loads(written) == filled(body(dashboard, conditions))


def test_aws_accepts_the_properties_of_every_resource() -> None:
    session = botocore.session.get_session()
    for (kind, _), properties in deployed(HAS_ADDRESS).items():
        if operation := OPERATIONS[kind]:
            service, call = operation
            shape = session.get_service_model(service).operation_model(call).input_shape
            spelled = {
                key if key in shape.members else key[0].lower() + key[1:]: each
                for key, each in properties.items()
            }
            validate_parameters(spelled, shape)


def dimensions_of(series: Series) -> dict[str, str]:
    if isinstance(series.metric, Metric):
        return {"Environment": "local", **series.dimensions}
    return {key: NAMES[resource] for key, resource in series.metric.dimensions.items()}


def read(metric: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    pairs = {each["Name"]: each["Value"] for each in metric["Dimensions"]}
    return metric["Namespace"], metric["MetricName"], pairs


@pytest.mark.parametrize("alarm", ALARMS, ids=lambda alarm: str(alarm.name))
def test_an_alarm_is_deployed_as_it_is_listed(alarm: Alarm) -> None:
    there = of_type("CloudWatch::Alarm")[alarm.name]
    listed = [
        ("Capstone" if isinstance(each.metric, Metric) else each.metric.namespace, each.metric.name)
        for each in alarm.series
    ]
    wanted_series = [(*names, dimensions_of(each)) for names, each in zip(listed, alarm.series, strict=True)]

    assert (there["Threshold"], there["ComparisonOperator"]) == (alarm.threshold, alarm.comparison)
    assert (there["EvaluationPeriods"], there["DatapointsToAlarm"]) == (alarm.periods, alarm.datapoints)
    assert there["TreatMissingData"] == alarm.missing.treatment
    if alarm.expression is None:
        assert [read(there)] == wanted_series
        assert (there.get("Statistic") or there["ExtendedStatistic"]) == alarm.series[0].statistic
        assert there["Period"] == alarm.period_s
    else:
        *series, watched = there["Metrics"]
        assert [read(each["MetricStat"]["Metric"]) for each in series] == wanted_series
        assert [(each["Id"], each["MetricStat"]["Stat"]) for each in series] == [
            (each.id, each.statistic) for each in alarm.series
        ]
        assert {each["MetricStat"]["Period"] for each in series} == {alarm.period_s}
        assert (watched["Expression"], watched["ReturnData"]) == (alarm.expression, True)
        assert not any(each["ReturnData"] for each in series)
    notifies_itself = alarm.incident is None and not alarm.causes
    assert there["AlarmActions"] == there["OKActions"] == ([NAMES["alert_topic"]] if notifies_itself else [])
    runbook = f"Runbook: docs/runbook.md#{alarm.runbook}"
    for part in (alarm.meaning, runbook, f"Owner: {alarm.owner} ({alarm.severity})", *alarm.look_at):
        assert part in there["AlarmDescription"]


@pytest.mark.parametrize("composite", composites(ALARMS), ids=lambda composite: str(composite.name))
def test_a_composite_is_deployed_as_the_list_makes_it(composite: Composite) -> None:
    there = of_type("CloudWatch::CompositeAlarm")[composite.name]

    assert there["AlarmRule"].split(" OR ") == [f'ALARM("{name}")' for name in composite.any_of]
    assert there["AlarmActions"] == ([NAMES["alert_topic"]] if composite.notifies else [])
    assert there["OKActions"] == ([NAMES["alert_topic"]] if composite.notifies_recovery else [])
    suppression = [there.get(f"ActionsSuppressor{key}") for key in ("", "WaitPeriod", "ExtensionPeriod")]
    if composite.suppressor is None:
        assert suppression == [None, None, None]
    else:
        assert suppression == [composite.suppressor, composite.wait_s, composite.extension_s]
    if composite.notifies:
        assert "Runbook: docs/runbook.md#" in there["AlarmDescription"]
        assert "Owner: " in there["AlarmDescription"]


def test_queries_groups_and_the_anomaly_detector_are_deployed_as_they_are_listed() -> None:
    for query in QUERIES:
        there = of_type("Logs::QueryDefinition")[f"capstone/{query.name}"]
        assert (there["LogGroupNames"], there["QueryString"]) == (list(query.groups), query.text)
    for group in LOG_GROUPS:
        assert of_type("Logs::LogGroup")[group.name]["RetentionInDays"] == group.retention_days
    for anomaly in ANOMALY_ALARMS:
        [detector] = of_type("CloudWatch::AnomalyDetector")[anomaly.series.metric.name].values()
        assert read(detector) == ("Capstone", anomaly.series.metric.name, {"Environment": "local"})
        assert detector["Stat"] == anomaly.series.statistic


def test_log_groups_keep_their_names_in_the_stack() -> None:
    """Under another one CloudFormation would delete the group with its lines, and fail to make it again."""
    names = {key: each["Properties"]["LogGroupName"] for key, each in committed("logs")["Resources"].items()}

    assert committed("logs")["Parameters"]["JobLogGroup"]["Default"] == "/aws/batch/job"
    assert names == {
        "IntakeLogs": "/capstone/intake",
        "BatchJobLogs": {"Ref": "JobLogGroup"},
        "VideoAnalysisLogs": "/capstone/video-analysis",
        "WebserverLogs": "/ecs/capstone-webserver",
        "DaemonLogs": "/ecs/capstone-daemon",
    }
    assert parsed(logs_template(LOG_GROUPS)) == committed("logs")


def test_every_alarm_notifies_once_and_never_beside_its_composite() -> None:
    asked = of_type("CloudWatch::Alarm") | of_type("CloudWatch::CompositeAlarm")
    notifying = {name for name, each in asked.items() if each["AlarmActions"]}

    for alarm in ALARMS:
        by = [
            name
            for name in notifying
            if name == alarm.name or f'ALARM("{alarm.name}")' in asked[name].get("AlarmRule", "")
        ]
        assert len(by) == 1, f"{alarm.name} notifies by {by}"


def alarm(name: str, *series: Series, **changes: Any) -> Alarm:
    """An alarm like any other, apart from what is said of it."""
    usual: dict[str, Any] = {
        "threshold": 80,
        "comparison": "GreaterThanThreshold",
        "period_s": 300,
        "periods": 2,
        "datapoints": 1,
        "missing": MissingData("ignore", ""),
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


def test_a_percentile_is_an_extended_statistic() -> None:
    properties = rendered(alarm("Slow", Series("p", own.RUN_DURATION, "p95")))["Slow"]["Properties"]
    assert properties["ExtendedStatistic"] == "p95"
    assert "Statistic" not in properties


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
