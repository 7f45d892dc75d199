"""What the list asks for in the words of AWS's APIs; CloudFormation spells its properties the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from capstone_dagster.catalog.alarms import ALARMS, ANOMALY_ALARMS
from capstone_dagster.catalog.composites import composites, notifier
from capstone_dagster.catalog.dashboard import DASHBOARDS
from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.catalog.model import (
    Alarm,
    AnomalyAlarm,
    Composite,
    Dashboard,
    LogGroup,
    SavedQuery,
    Series,
)
from capstone_dagster.catalog.queries import QUERIES

from .dashboards import as_json, body, dimensions, namespace, with_open_numbers

Kind = Literal["log group", "alarm", "composite alarm", "anomaly detector", "dashboard", "saved query"]
# CloudWatch's limit, with room for a long address of the runbook (DescribeAlarms: AlarmDescription).
LONGEST_DESCRIPTION = 1024 - 200
_BASIC_STATISTICS = ("Sum", "Average", "Minimum", "Maximum", "SampleCount")
_ANOMALY_SERIES, _ANOMALY_BAND = "value", "band"


@dataclass(frozen=True)
class Request:
    """One thing that is to be there.

    Attributes:
        parameters: as the API's operation takes them; texts may leave names of the deployment open.
        condition: the template's condition under which it is to be there; None: always.
    """

    kind: Kind
    name: str
    parameters: Mapping[str, Any] = field(repr=False)
    condition: str | None = None


def everything(conditions: frozenset[str] = frozenset()) -> Iterator[Request]:
    """All of the list, each entry after those that it refers to.

    Args:
        conditions: those under which dashboards are drawn; alarms say their own.
    """
    yield from map(log_group, LOG_GROUPS)
    yield from alarms(ALARMS)
    for anomaly in ANOMALY_ALARMS:
        yield anomaly_detector(anomaly)
        yield anomaly_alarm(anomaly)
    for each in DASHBOARDS:
        yield dashboard(each, conditions)
    yield from map(saved_query, QUERIES)


def log_group(group: LogGroup) -> Request:
    """CreateLogGroup and PutRetentionPolicy, which are one resource of CloudFormation's."""
    parameters = {"logGroupName": group.name, "retentionInDays": group.retention_days}
    return Request("log group", group.name, parameters)


def saved_query(query: SavedQuery) -> Request:
    """PutQueryDefinition; queries of ours stand in a folder of that name."""
    parameters = {"logGroupNames": list(query.groups), "queryString": query.text}
    name = f"capstone/{query.name}"
    return Request("saved query", name, {"name": name, **parameters})


def dashboard(listed: Dashboard, conditions: frozenset[str] = frozenset()) -> Request:
    """PutDashboard, of the dashboard where `conditions` hold."""
    parameters = {"DashboardName": listed.name, "DashboardBody": as_json(body(listed, conditions))}
    return Request("dashboard", listed.name, parameters)


def alarms(listed: Iterable[Alarm]) -> Iterator[Request]:
    """Every alarm, then the composites that notify in place of some, each after those that it refers to."""
    listed = tuple(listed)
    by_name = {each.name: each for each in listed}
    for alarm in listed:
        yield metric_alarm(alarm)
    for composite in composites(listed):
        yield composite_alarm(composite, by_name)


def metric_alarm(alarm: Alarm) -> Request:
    """PutMetricAlarm.

    Raises:
        ValueError: several series and no expression that makes one of them, or the description is too long.
    """
    parameters = {
        "AlarmName": alarm.name,
        "AlarmDescription": _description(alarm),
        **_actions(notifier(alarm) == alarm.name),
        **_watched(alarm),
        "EvaluationPeriods": alarm.periods,
        "DatapointsToAlarm": alarm.datapoints,
        "Threshold": float(alarm.threshold),
        "ComparisonOperator": alarm.comparison,
        "TreatMissingData": alarm.missing,
    }
    return Request("alarm", alarm.name, parameters, alarm.condition)


def composite_alarm(composite: Composite, alarms: Mapping[str, Alarm]) -> Request:
    """PutCompositeAlarm."""
    signs = [alarms[name] for name in composite.any_of] if composite.notifies else []
    parameters: dict[str, Any] = {
        "AlarmName": composite.name,
        "AlarmDescription": _description(signs[0], *signs[1:]) if signs else composite.meaning,
        **_actions(composite.notifies, composite.tells_recovery),
        "AlarmRule": " OR ".join(f'ALARM("{name}")' for name in composite.any_of),
    }
    if composite.suppressor:
        parameters |= {
            "ActionsSuppressor": composite.suppressor,
            "ActionsSuppressorWaitPeriod": composite.wait_s,
            "ActionsSuppressorExtensionPeriod": composite.extension_s,
        }
    return Request("composite alarm", composite.name, parameters, composite.condition)


def anomaly_detector(alarm: AnomalyAlarm) -> Request:
    """PutAnomalyDetector: the model that the alarm's band comes from."""
    series = alarm.series
    parameters = {
        "Namespace": namespace(series),
        "MetricName": series.metric.name,
        "Dimensions": _pairs(dimensions(series)),
        "Stat": series.statistic,
    }
    return Request("anomaly detector", series.metric.name, {"SingleMetricAnomalyDetector": parameters})


def anomaly_alarm(alarm: AnomalyAlarm) -> Request:
    """PutMetricAlarm, on leaving the band that the model expects."""
    band = {
        "Id": _ANOMALY_BAND,
        "Expression": f"ANOMALY_DETECTION_BAND({_ANOMALY_SERIES}, {alarm.band:g})",
        "Label": "expected",
        "ReturnData": True,
    }
    value = _metric_stat(alarm.series, alarm.period_s) | {"Id": _ANOMALY_SERIES, "ReturnData": True}
    parameters = {
        "AlarmName": alarm.name,
        "AlarmDescription": _description(alarm),
        **_actions(True),
        "Metrics": [value, band],
        "ThresholdMetricId": _ANOMALY_BAND,
        "EvaluationPeriods": alarm.periods,
        "DatapointsToAlarm": alarm.datapoints,
        "ComparisonOperator": "LessThanLowerOrGreaterThanUpperThreshold",
        # Hours without a video are ordinary.
        "TreatMissingData": "notBreaching",
    }
    return Request("alarm", alarm.name, parameters)


def _watched(alarm: Alarm) -> dict[str, Any]:
    if alarm.expression is None:
        if len(alarm.series) != 1:
            raise ValueError(f"{alarm.name} has {len(alarm.series)} series; one, or an expression, is needed")
        [series] = alarm.series
        kind = "Statistic" if series.statistic in _BASIC_STATISTICS else "ExtendedStatistic"
        return {
            "Namespace": namespace(series),
            "MetricName": series.metric.name,
            "Dimensions": _pairs(dimensions(series)),
            kind: series.statistic,
            "Period": alarm.period_s,
        }
    read = [_metric_stat(each, alarm.period_s) for each in alarm.series]
    expression = with_open_numbers(alarm.expression)
    # Named by no series of ours, which begin with a small letter too.
    watched = {"Id": "watched", "Expression": expression, "Label": alarm.name, "ReturnData": True}
    return {"Metrics": [*read, watched]}


def _metric_stat(series: Series, period_s: int) -> dict[str, Any]:
    metric = {
        "Namespace": namespace(series),
        "MetricName": series.metric.name,
        "Dimensions": _pairs(dimensions(series)),
    }
    stat = {"Metric": metric, "Period": period_s, "Stat": series.statistic}
    return {"Id": series.id, "MetricStat": stat, "ReturnData": False}


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Name": name, "Value": value} for name, value in values.items()]


def _actions(notifies: bool, tells_recovery: bool = True) -> dict[str, list[str]]:
    topic = ["${alert_topic}"]
    return {
        "AlarmActions": topic if notifies else [],
        "OKActions": topic if notifies and tells_recovery else [],
    }


def _description(alarm: Alarm | AnomalyAlarm, *others: Alarm) -> str:
    """What the notice says, which AWS sends it along with; of an incident what its first sign would say."""
    lines = [
        alarm.meaning,
        f"Look at: {'; '.join(alarm.look_at)}",
        f"Runbook: ${{runbook_url}}#{alarm.runbook}",
        f"Owner: {alarm.owner} ({alarm.severity})",
    ]
    if others:
        lines.insert(1, f"One of: {', '.join(each.name for each in (alarm, *others))}")
    text = "\n".join(lines)
    if len(text) > LONGEST_DESCRIPTION:
        raise ValueError(f"{alarm.name}: its description has {len(text)} of {LONGEST_DESCRIPTION} characters")
    return text
