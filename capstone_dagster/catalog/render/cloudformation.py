"""The list as CloudFormation templates, which alone write what is observed in AWS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from capstone_dagster.catalog.model import (
    Alarm,
    AnomalyAlarm,
    Dashboard,
    LogGroup,
    SavedQuery,
)

from . import requests
from .dashboards import as_json, widgets
from .deployment import DEPLOYMENT, open_names
from .requests import Request

_TYPES: Mapping[requests.Kind, str] = {
    "alarm": "AWS::CloudWatch::Alarm",
    "composite alarm": "AWS::CloudWatch::CompositeAlarm",
    "anomaly detector": "AWS::CloudWatch::AnomalyDetector",
    "dashboard": "AWS::CloudWatch::Dashboard",
    "saved query": "AWS::Logs::QueryDefinition",
}
# That of application.yaml, which cannot be imported: conditions know parameters alone.
_HAS_ADDRESS = "HasAddress"
_RENDERED = "# Rendered by `make docs` from capstone_dagster/catalog: change it there.\n"


@dataclass(frozen=True)
class _Function:
    """One of CloudFormation's functions, in its short form."""

    name: str
    value: Any


def logs_template(groups: Iterable[LogGroup]) -> str:
    """`infra/logs.yaml`."""
    resources = {}
    for group in groups:
        asked = requests.log_group(group).parameters
        resources[f"{_camel_case(group.name)}Logs"] = {
            "Type": "AWS::Logs::LogGroup",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "LogGroupName": asked["logGroupName"],
                "RetentionInDays": asked["retentionInDays"],
            },
        }
    return (
        _header("Capstone 2/6, log groups: where everything is written, and for how many days it is kept.")
        + "# Groups that nobody declares are made by whoever writes first, and kept for ever. Their names\n"
        "# are those that the code and its operators know, so that there is one deployment for each\n"
        "# account and region.\n\n" + _dump({"Resources": resources})
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
    asked = [*requests.alarms(alarms)]
    for anomaly in anomaly_alarms:
        asked += [requests.anomaly_detector(anomaly), requests.anomaly_alarm(anomaly)]
    asked += map(requests.saved_query, queries)
    resources: dict[str, Any] = {}
    for request in asked:
        name = _logical_id(request)
        if name in resources:
            raise ValueError(f"{name} is declared twice; rename one of the two")
        resources[name] = _resource(request)
    for dashboard in dashboards:
        resources[f"{_camel_case(dashboard.name)}Dashboard"] = _dashboard(dashboard)
    body = {
        "Parameters": {
            "RunbookUrl": {
                "Type": "String",
                "Default": DEPLOYMENT["runbook_url"].local,
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
                "Default": int(DEPLOYMENT["database_storage_gib"].local),
                "Description": "Size of the database's disk; it grows by itself.",
            },
        },
        "Conditions": {
            _HAS_ADDRESS: _Function("Not", [_Function("Equals", [_Function("Ref", "LoadBalancer"), ""])])
        },
        "Resources": resources,
    }
    return (
        _header("Capstone 6/6, observability: alarms and whom they tell, the dashboard, saved queries.")
        + "# docs/observability.md explains each entry.\n\n"
        + _dump(body)
    )


def _resource(request: Request) -> dict[str, Any]:
    properties = {key[0].upper() + key[1:]: each for key, each in request.parameters.items()}
    if request.kind == "composite alarm":
        # By reference, so that CloudFormation makes what an alarm refers to before it.
        properties["AlarmRule"] = _Function(
            "Sub", re.sub(r'ALARM\("(\w+)"\)', r'ALARM("${\1}")', properties["AlarmRule"])
        )
        if "ActionsSuppressor" in properties:
            properties["ActionsSuppressor"] = _Function("Ref", properties["ActionsSuppressor"])
    resource: dict[str, Any] = {"Type": _TYPES[request.kind]}
    if request.condition:
        resource["Condition"] = request.condition
    return {**resource, "Properties": _with_functions(properties)}


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    """With each widget on a line of its own, and those that are not always there at the end."""
    always: list[str] = []
    optional: dict[str, list[str]] = {}
    for condition, widget in widgets(dashboard):
        (always if condition is None else optional.setdefault(condition, [])).append(as_json(widget))
    text = '{"widgets":[\n' + ",\n".join(always)
    values: dict[str, Any] = {}
    for condition, those in optional.items():
        text += f"${{{condition}}}"
        values[condition] = _Function("If", [condition, _sub(",\n" + ",\n".join(those)), ""])
    return {
        "Type": _TYPES["dashboard"],
        "Properties": {
            "DashboardName": dashboard.name,
            "DashboardBody": _sub(text + "\n]}", values),
        },
    }


def _with_functions(value: Any) -> Any:
    """A value in which texts with open names have become functions that fill them in."""
    if isinstance(value, str):
        names = open_names(value)
        if not names:
            return value
        return _value_of(names[0]) if value == f"${{{names[0]}}}" else _sub(value)
    if isinstance(value, Mapping):
        return {key: _with_functions(each) for key, each in value.items()}
    return [_with_functions(each) for each in value] if isinstance(value, list) else value


def _sub(text: str, also: Mapping[str, Any] | None = None) -> _Function:
    """`Sub`, with a variable for each name that the text leaves open."""
    found: dict[str, Any] = dict(also or {})
    for name in re.findall(r"\$\{(\w+)\}", text):
        if name in found:
            continue
        known = DEPLOYMENT[name]
        # What CloudFormation knows by itself needs no variable.
        direct = known.pseudo or known.parameter
        if direct:
            text = text.replace(f"${{{name}}}", f"${{{direct}}}")
        else:
            found[name] = _value_of(name)
    return _Function("Sub", [text, found] if found else text)


def _value_of(name: str) -> _Function:
    known = DEPLOYMENT[name]
    if known.export:
        return _Function("ImportValue", known.export)
    return _Function("Ref", known.parameter or known.pseudo)


def _logical_id(request: Request) -> str:
    ending = {"anomaly detector": "Detector", "saved query": "Query"}.get(request.kind, "")
    return f"{_camel_case(request.name)}{ending}"


def _camel_case(name: str) -> str:
    """Of a name's parts those that tell it from others: `/ecs/capstone-webserver` is `Webserver`."""
    words = [word for word in re.split(r"\W+", name) if word not in ("", "aws", "ecs", "capstone")]
    return "".join(word[0].upper() + word[1:] for word in words)


def _header(description: str) -> str:
    return f'AWSTemplateFormatVersion: "2010-09-09"\nDescription: >-\n  {description}\n\n{_RENDERED}'


class _Dumper(yaml.SafeDumper):
    """Block style outside, flow style for what holds plain values alone; texts of lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # CloudFormation does not know them

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def choose_scalar_style(self) -> str:
        # PyYAML would quote whatever has a tag.
        event = self.event
        if isinstance(event, yaml.ScalarEvent) and str(event.tag).startswith("!") and not event.style:
            self.analysis = self.analysis or self.analyze_scalar(event.value)
            if self.analysis.allow_flow_plain:
                return ""
        return str(super().choose_scalar_style())


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_function(dumper: yaml.SafeDumper, function: _Function) -> yaml.Node:
    tag, value = f"!{function.name}", function.value
    if isinstance(value, str):
        return dumper.represent_scalar(tag, value, style="|" if "\n" in value else None)
    return dumper.represent_sequence(tag, value)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(_Function, _represent_function)


def _dump(body: Mapping[str, Any]) -> str:
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 110}
    return "\n".join(
        yaml.dump({key: each}, Dumper=_Dumper, default_flow_style=None, **options)
        for key, each in body.items()
    )
