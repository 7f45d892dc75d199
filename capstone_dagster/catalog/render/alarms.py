"""Alarms as the properties of CloudFormation resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capstone_dagster.catalog.composites import notifier
from capstone_dagster.catalog.model import Alarm, AnomalyAlarm, Composite, Series

from .dashboards import dimensions, namespace, with_open_numbers
from .template import Function

# CloudWatch's limit is 1024 characters (DescribeAlarms: AlarmDescription); a runbook's address may be long.
LONGEST_DESCRIPTION = 1024 - 200
_BASIC_STATISTICS = ("Sum", "Average", "Minimum", "Maximum", "SampleCount")
_ANOMALY_SERIES, _ANOMALY_BAND = "value", "band"

Properties = dict[str, Any]


def metric_alarm(alarm: Alarm) -> Properties:
    """An alarm on one series, or on an expression over several.

    Raises:
        ValueError: several series and no expression that combines them, or the description is too long.
    """
    return {
        "AlarmName": alarm.name,
        "AlarmDescription": _description(alarm),
        **_actions(notifier(alarm) == alarm.name),
        **_watched(alarm),
        "EvaluationPeriods": alarm.periods,
        "DatapointsToAlarm": alarm.datapoints,
        "Threshold": float(alarm.threshold),
        "ComparisonOperator": alarm.comparison,
        "TreatMissingData": alarm.missing.treatment,
    }


def composite_alarm(composite: Composite, alarms: Mapping[str, Alarm]) -> Properties:
    """An alarm on other alarms, which it refers to so that CloudFormation makes them first."""
    signs = [alarms[name] for name in composite.any_of] if composite.notifies else []
    properties: Properties = {
        "AlarmName": composite.name,
        "AlarmDescription": _description(signs[0], *signs[1:]) if signs else composite.meaning,
        **_actions(composite.notifies, composite.notifies_recovery),
        "AlarmRule": Function("Sub", " OR ".join(f'ALARM("${{{name}}}")' for name in composite.any_of)),
    }
    if composite.suppressor:
        properties |= {
            "ActionsSuppressor": Function("Ref", composite.suppressor),
            "ActionsSuppressorWaitPeriod": composite.wait_s,
            "ActionsSuppressorExtensionPeriod": composite.extension_s,
        }
    return properties


def anomaly_detector(alarm: AnomalyAlarm) -> Properties:
    """The model from which CloudWatch computes the alarm's band."""
    return {"SingleMetricAnomalyDetector": {**_metric(alarm.series), "Stat": alarm.series.statistic}}


def anomaly_alarm(alarm: AnomalyAlarm) -> Properties:
    """An alarm on leaving the band that the model expects."""
    band = {
        "Id": _ANOMALY_BAND,
        "Expression": f"ANOMALY_DETECTION_BAND({_ANOMALY_SERIES}, {alarm.band:g})",
        "Label": "expected",
        "ReturnData": True,
    }
    value = _metric_stat(alarm.series, alarm.period_s) | {"Id": _ANOMALY_SERIES, "ReturnData": True}
    return {
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


def _watched(alarm: Alarm) -> Properties:
    if alarm.expression is None:
        if len(alarm.series) != 1:
            raise ValueError(f"{alarm.name} has {len(alarm.series)} series; one, or an expression, is needed")
        [series] = alarm.series
        kind = "Statistic" if series.statistic in _BASIC_STATISTICS else "ExtendedStatistic"
        return {**_metric(series), kind: series.statistic, "Period": alarm.period_s}
    # No series of ours has the id `watched`.
    expression = {
        "Id": "watched",
        "Expression": with_open_numbers(alarm.expression),
        "Label": alarm.name,
        "ReturnData": True,
    }
    return {"Metrics": [*(_metric_stat(each, alarm.period_s) for each in alarm.series), expression]}


def _metric_stat(series: Series, period_s: int) -> Properties:
    stat = {"Metric": _metric(series), "Period": period_s, "Stat": series.statistic}
    return {"Id": series.id, "MetricStat": stat, "ReturnData": False}


def _metric(series: Series) -> Properties:
    return {
        "Namespace": namespace(series),
        "MetricName": series.metric.name,
        "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions(series).items()],
    }


def _actions(notifies: bool, notifies_recovery: bool = True) -> dict[str, list[str]]:
    topic = ["${alert_topic}"]
    return {
        "AlarmActions": topic if notifies else [],
        "OKActions": topic if notifies and notifies_recovery else [],
    }


def _description(alarm: Alarm | AnomalyAlarm, *others: Alarm) -> str:
    """The text that AWS sends with the notice; of an incident, the text of its first sign."""
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
