"""The catalog as CloudFormation templates. Only these templates create what is observed in AWS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from capstone_dagster.catalog.composites import composites
from capstone_dagster.catalog.log_groups import BATCH_JOB
from capstone_dagster.catalog.model import Alarm, AnomalyAlarm, Dashboard, LogGroup, SavedQuery

from . import alarms as render
from .dashboards import as_json, widgets
from .deployment import DEPLOYMENT, log_group_name
from .template import Function, dump, sub, with_functions

# The same condition as in application.yaml. Conditions cannot be imported; they read parameters only.
_HAS_ADDRESS = "HasAddress"
_JOB_LOG_GROUP = "JobLogGroup"
_RENDERED = "# Rendered by `make docs` from capstone_dagster/catalog: change it there.\n"

Resource = dict[str, Any]


def logs_template(groups: Iterable[LogGroup]) -> str:
    """`infra/logs.yaml`."""
    resources = {
        f"{_logical_id(group.name)}Logs": {
            "Type": "AWS::Logs::LogGroup",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "LogGroupName": Function("Ref", _JOB_LOG_GROUP) if group == BATCH_JOB else group.name,
                "RetentionInDays": group.retention_days,
            },
        }
        for group in groups
    }
    body = {
        "Parameters": {
            _JOB_LOG_GROUP: {
                "Type": "String",
                "Default": BATCH_JOB.name,
                "AllowedPattern": r"^[\w./#-]{1,512}$",
                "Description": "Log group of the jobs' history; another where the account has this one.",
            }
        },
        "Resources": resources,
        "Outputs": {
            _JOB_LOG_GROUP: {
                "Value": Function("Ref", _JOB_LOG_GROUP),
                "Export": {"Name": DEPLOYMENT["job_log_group"].export},
            }
        },
    }
    return (
        _header("Capstone 2/6, log groups: where everything is written, and for how many days it is kept.")
        + "# An undeclared group is made by its first writer and kept for ever. The code and its operators\n"
        "# know these names, so that there is one deployment for each account and region.\n\n" + dump(body)
    )


def observability_template(
    alarms: Sequence[Alarm],
    anomaly_alarms: Sequence[AnomalyAlarm],
    dashboards: Sequence[Dashboard],
    queries: Sequence[SavedQuery],
) -> str:
    """`infra/observability.yaml`.

    Raises:
        ValueError: two entries come out under one name.
    """
    by_name = {each.name: each for each in alarms}
    declared: list[tuple[str, Resource]] = []
    for alarm in alarms:
        properties = render.metric_alarm(alarm)
        declared.append((alarm.name, _resource("CloudWatch::Alarm", properties, alarm.condition)))
    for composite in composites(alarms):
        properties = render.composite_alarm(composite, by_name)
        declared.append(
            (composite.name, _resource("CloudWatch::CompositeAlarm", properties, composite.condition))
        )
    for anomaly in anomaly_alarms:
        detector = _resource("CloudWatch::AnomalyDetector", render.anomaly_detector(anomaly))
        declared.append((f"{_logical_id(anomaly.series.metric.name)}Detector", detector))
        declared.append((anomaly.name, _resource("CloudWatch::Alarm", render.anomaly_alarm(anomaly))))
    for query in queries:
        properties = {
            "Name": f"capstone/{query.name}",
            "LogGroupNames": [log_group_name(name) for name in query.groups],
            "QueryString": query.text,
        }
        declared.append((f"{_logical_id(query.name)}Query", _resource("Logs::QueryDefinition", properties)))
    for dashboard in dashboards:
        declared.append((f"{_logical_id(dashboard.name)}Dashboard", _dashboard(dashboard)))

    resources: dict[str, Resource] = {}
    for name, resource in declared:
        if name in resources:
            raise ValueError(f"{name} is declared twice; rename one of the two")
        resources[name] = resource
    body = {
        "Parameters": {
            "RunbookUrl": {
                "Type": "String",
                "Default": "docs/runbook.md",
                "AllowedPattern": r"^\S+$",
                "Description": "Where docs/runbook.md of this version is read; as in application.yaml.",
            },
            "LoadBalancer": {
                "Type": "String",
                "Default": "",
                "AllowedPattern": "^(app/.+)?$",
                "Description": "Output LoadBalancerFullName of application.yaml. Empty where there is none.",
            },
            "DatabaseStorageGiB": {
                "Type": "Number",
                "Default": 50,
                "Description": "Size of the database's disk; it grows by itself.",
            },
        },
        "Conditions": {
            _HAS_ADDRESS: Function("Not", [Function("Equals", [Function("Ref", "LoadBalancer"), ""])])
        },
        "Resources": resources,
    }
    return (
        _header("Capstone 6/6, observability: alarms and whom they notify, the dashboard, saved queries.")
        + "# docs/observability.md explains each entry.\n\n"
        + dump(body)
    )


def _resource(kind: str, properties: Resource, condition: str | None = None) -> Resource:
    resource: Resource = {"Type": f"AWS::{kind}"}
    if condition:
        resource["Condition"] = condition
    return {**resource, "Properties": with_functions(properties)}


def _dashboard(dashboard: Dashboard) -> Resource:
    """One line of JSON a widget; conditional widgets stand at the end, each group in an `!If`."""
    always: list[str] = []
    optional: dict[str, list[str]] = {}
    for condition, widget in widgets(dashboard):
        (always if condition is None else optional.setdefault(condition, [])).append(as_json(widget))
    text = '{"widgets":[\n' + ",\n".join(always)
    values: Resource = {}
    for condition, those in optional.items():
        text += f"${{{condition}}}"
        values[condition] = Function("If", [condition, sub(",\n" + ",\n".join(those)), ""])
    properties = {"DashboardName": dashboard.name, "DashboardBody": sub(text + "\n]}", values)}
    return {"Type": "AWS::CloudWatch::Dashboard", "Properties": properties}


def _logical_id(name: str) -> str:
    """The distinctive parts of a name in camel case: `/ecs/capstone-webserver` becomes `Webserver`."""
    words = [word for word in re.split(r"\W+", name) if word not in ("", "aws", "ecs", "capstone")]
    return "".join(word[0].upper() + word[1:] for word in words)


def _header(description: str) -> str:
    return f'AWSTemplateFormatVersion: "2010-09-09"\nDescription: >-\n  {description}\n\n{_RENDERED}'
