"""The list in an emulator of AWS, by boto3; in AWS itself CloudFormation alone writes it.

Emulators lack some of it, and some take what they then forget. So what was made is read back, and the
difference is told: an alarm that is empty, and of which nobody says so, would be worse than none.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from .deployment import filled
from .requests import Kind, Request

# What properties are for, in a word; others are called by their name.
_FEATURES = {
    "Metrics": "metric math",
    "ThresholdMetricId": "metric math",
    "ActionsSuppressor": "suppression",
    "ActionsSuppressorWaitPeriod": "suppression",
    "ActionsSuppressorExtensionPeriod": "suppression",
}
_PLURALS: Mapping[Kind, str] = {"saved query": "saved queries"}

Clients = Callable[[str], Any]
"""A boto3 client for a service, by its name."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What an emulator did not make as it was asked.

    Attributes:
        properties: those that it forgot or changed; none of them where the whole is not there.
    """

    kind: Kind
    name: str
    properties: tuple[str, ...] = ()


def create(
    requests: Iterable[Request],
    client: Clients,
    names: Mapping[str, str],
    conditions: frozenset[str] = frozenset(),
) -> tuple[LeftOut, ...]:
    """Make what is missing and correct what differs; fit for every start.

    Args:
        names: the deployment's names, as of :func:`deployment.local_names`.
        conditions: those of the template's that hold here.
    """
    wanted = [
        Request(each.kind, each.name, filled(each.parameters, names), each.condition)
        for each in requests
        if each.condition in (None, *conditions)
    ]
    unknown: set[Kind] = set()
    refused: set[str] = set()
    for request in wanted:
        if request.kind in unknown:
            continue
        try:
            _PUT[request.kind](client, request)
        except ClientError as error:
            if _is_unknown(error):
                unknown.add(request.kind)
            else:
                refused.add(request.name)
        except BotoCoreError:
            refused.add(request.name)
    return tuple(_differences(wanted, client, unknown))


def sentence(left_out: Iterable[LeftOut]) -> str:
    """What is missing, by feature and kind, with how often; empty where nothing is."""
    counted: Counter[tuple[str, Kind]] = Counter()
    for each in left_out:
        features = {_FEATURES.get(name, name) for name in each.properties} or {""}
        counted.update((feature, each.kind) for feature in sorted(features))
    return ", ".join(
        (f"{feature} of " if feature else "")
        + f"{number} {_PLURALS.get(kind, kind + 's') if number > 1 else kind}"
        for (feature, kind), number in counted.items()
    )


def _differences(wanted: Iterable[Request], client: Clients, unknown: set[Kind]) -> Iterable[LeftOut]:
    described: dict[Kind, Mapping[str, Mapping[str, Any]]] = {}
    for request in wanted:
        if request.kind in unknown:
            yield LeftOut(request.kind, request.name)
            continue
        if request.kind not in described:
            described[request.kind] = _DESCRIBE[request.kind](client)
        there = described[request.kind].get(request.name)
        if there is None:
            yield LeftOut(request.kind, request.name)
        elif differing := [key for key, value in request.parameters.items() if there.get(key, []) != value]:
            yield LeftOut(request.kind, request.name, tuple(differing))


def _is_unknown(error: ClientError) -> bool:
    """Whether the emulator knows no such operation: each says it in its way."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    text = str(error.response.get("Error", {}).get("Message", ""))
    return "Unknown action" in text or "not been implemented" in text or status in (500, 501)


def _put_log_group(client: Clients, request: Request) -> None:
    logs, name = client("logs"), request.name
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=name)
    logs.put_retention_policy(**request.parameters)


def _put_saved_query(client: Clients, request: Request) -> None:
    logs = client("logs")
    there = logs.describe_query_definitions(queryDefinitionNamePrefix=request.name)["queryDefinitions"]
    # Without the id, a second one of the same name would be made.
    same = [
        {"queryDefinitionId": each["queryDefinitionId"]} for each in there if each["name"] == request.name
    ]
    logs.put_query_definition(**request.parameters, **(same[0] if same else {}))


def _put_dashboard(client: Clients, request: Request) -> None:
    client("cloudwatch").put_dashboard(**request.parameters)


def _put_alarm(client: Clients, request: Request) -> None:
    client("cloudwatch").put_metric_alarm(**request.parameters)


def _put_composite_alarm(client: Clients, request: Request) -> None:
    client("cloudwatch").put_composite_alarm(**request.parameters)


def _put_anomaly_detector(client: Clients, request: Request) -> None:
    client("cloudwatch").put_anomaly_detector(**request.parameters)


def _log_groups(client: Clients) -> dict[str, Mapping[str, Any]]:
    pages = client("logs").get_paginator("describe_log_groups").paginate()
    return {each["logGroupName"]: each for page in pages for each in page["logGroups"]}


def _saved_queries(client: Clients) -> dict[str, Mapping[str, Any]]:
    found = client("logs").describe_query_definitions(maxResults=1000)["queryDefinitions"]
    return {each["name"]: each for each in found}


def _alarms(client: Clients) -> dict[str, Mapping[str, Any]]:
    kinds = {"MetricAlarm": "MetricAlarms", "CompositeAlarm": "CompositeAlarms"}
    pages = client("cloudwatch").get_paginator("describe_alarms").paginate(AlarmTypes=[*kinds])
    return {each["AlarmName"]: each for page in pages for key in kinds.values() for each in page[key]}


def _anomaly_detectors(client: Clients) -> dict[str, Mapping[str, Any]]:
    found = client("cloudwatch").describe_anomaly_detectors()["AnomalyDetectors"]
    return {each["SingleMetricAnomalyDetector"]["MetricName"]: each for each in found}


def _dashboards(client: Clients) -> dict[str, Mapping[str, Any]]:
    cloudwatch = client("cloudwatch")
    names = [each["DashboardName"] for each in cloudwatch.list_dashboards()["DashboardEntries"]]
    return {name: cloudwatch.get_dashboard(DashboardName=name) for name in names}


_PUT: Mapping[Kind, Callable[[Clients, Request], None]] = {
    "log group": _put_log_group,
    "saved query": _put_saved_query,
    "dashboard": _put_dashboard,
    "alarm": _put_alarm,
    "composite alarm": _put_composite_alarm,
    "anomaly detector": _put_anomaly_detector,
}
_DESCRIBE: Mapping[Kind, Callable[[Clients], Mapping[str, Mapping[str, Any]]]] = {
    "log group": _log_groups,
    "saved query": _saved_queries,
    "dashboard": _dashboards,
    "alarm": _alarms,
    "composite alarm": _alarms,
    "anomaly detector": _anomaly_detectors,
}
