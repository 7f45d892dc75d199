"""What boto3 makes of the list, by describe calls; what an emulator leaves out is known to the last property.

moto keeps alarms whole and knows no composite ones; ministack knows these, and forgets metric math. Neither
knows saved queries and anomaly detectors: of those the calls are compared with AWS's own description of them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.stub import Stubber

from capstone_dagster.catalog.alarms import ALARMS, ANOMALY_ALARMS
from capstone_dagster.catalog.composites import composites
from capstone_dagster.catalog.dashboard import DASHBOARDS
from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.catalog.model import Alarm, Metric, Series
from capstone_dagster.catalog.queries import QUERIES
from capstone_dagster.catalog.render import boto, requests
from capstone_dagster.catalog.render.boto import LeftOut, create, sentence
from capstone_dagster.catalog.render.deployment import filled, local_names
from capstone_dagster.catalog.render.requests import Request
from capstone_dagster.local import aws
from capstone_dagster.local.aws import CREDENTIALS, REGION, client, ministack_server
from tests.support.moto import moto_server
from tests.support.waiting import wait_for

NAMES = local_names(alert_topic="arn:aws:sns:ap-northeast-2:000000000000:alerts")
EVERYTHING = tuple(requests.everything())
UNCONDITIONAL = tuple(each for each in EVERYTHING if each.condition is None)
# Told by nobody: what either emulator has no notion of.
UNKNOWN = {"saved query", "anomaly detector"}


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[boto.Clients]:
    with ministack_server(tmp_path_factory.mktemp("aws")) as emulator:
        yield lambda service: client(service, emulator.endpoint_url)


@pytest.fixture(scope="module")
def moto() -> Iterator[boto.Clients]:
    def without_retries(service: str) -> Any:
        # It answers operations that it does not know with status 500, which boto3 tries again for seconds.
        return boto3.client(  # type: ignore[call-overload]
            service,
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )

    with moto_server() as url:
        yield without_retries


@pytest.fixture(scope="module")
def made_on_moto(moto: boto.Clients) -> dict[str, dict[str, Any]]:
    """The alarms that moto describes."""
    create(EVERYTHING, moto, NAMES)
    return described_alarms(moto, "MetricAlarm")


def test_the_local_names_are_those_of_the_local_stack() -> None:
    names = local_names()
    topic = names["alert_topic"].rpartition(":")[2]

    assert (names["upload_queue"], names["dead_letter_queue"]) == (aws.UPLOAD_QUEUE, aws.DEAD_LETTER_QUEUE)
    assert (names["region"], topic) == (aws.REGION, aws.ALERT_TOPIC)


def wanted(kind: str) -> dict[str, Mapping[str, Any]]:
    return {each.name: filled(each.parameters, NAMES) for each in UNCONDITIONAL if each.kind == kind}


def described_alarms(clients: boto.Clients, kind: str) -> dict[str, dict[str, Any]]:
    pages = clients("cloudwatch").get_paginator("describe_alarms").paginate(AlarmTypes=[kind])
    return {each["AlarmName"]: each for page in pages for each in page[f"{kind}s"]}


def test_moto_has_every_alarm_with_every_property(moto: boto.Clients) -> None:
    left_out = create(EVERYTHING, moto, NAMES)
    there, asked = described_alarms(moto, "MetricAlarm"), wanted("alarm")

    assert set(there) == set(asked)
    assert len(asked) == len([each for each in ALARMS if each.condition is None]) + len(ANOMALY_ALARMS)
    for name, parameters in asked.items():
        assert {key: there[name].get(key) for key in parameters} == parameters, name
    assert {each.kind for each in left_out} == {"composite alarm", *UNKNOWN}
    assert all(each.properties == () for each in left_out)


def dimensions_of(series: Series) -> dict[str, str]:
    if isinstance(series.metric, Metric):
        return {"Environment": "local", **series.dimensions}
    return {key: NAMES[resource] for key, resource in series.metric.dimensions.items()}


def read(metric: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    pairs = {each["Name"]: each["Value"] for each in metric["Dimensions"]}
    return metric["Namespace"], metric["MetricName"], pairs


@pytest.mark.parametrize(
    "alarm", [each for each in ALARMS if each.condition is None], ids=lambda alarm: str(alarm.name)
)
def test_an_alarm_is_as_it_is_listed(alarm: Alarm, made_on_moto: dict[str, dict[str, Any]]) -> None:
    """From the list itself, not from what is asked of AWS."""
    there = made_on_moto[alarm.name]
    listed = [
        ("Capstone" if isinstance(each.metric, Metric) else each.metric.namespace, each.metric.name)
        for each in alarm.series
    ]
    wanted_series = [(*names, dimensions_of(each)) for names, each in zip(listed, alarm.series, strict=True)]

    assert (there["Threshold"], there["ComparisonOperator"]) == (alarm.threshold, alarm.comparison)
    assert (there["EvaluationPeriods"], there["DatapointsToAlarm"]) == (alarm.periods, alarm.datapoints)
    assert there["TreatMissingData"] == alarm.missing
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
    told_by_itself = alarm.incident is None and not alarm.causes
    assert there["AlarmActions"] == there["OKActions"] == ([NAMES["alert_topic"]] if told_by_itself else [])
    for part in (alarm.meaning, f"#{alarm.runbook}", alarm.owner, alarm.severity, *alarm.look_at):
        assert part in there["AlarmDescription"]


def test_composites_are_as_the_list_makes_them(ministack: boto.Clients) -> None:
    create(EVERYTHING, ministack, NAMES)
    there = described_alarms(ministack, "CompositeAlarm")
    asked = {each.name: each.parameters for each in UNCONDITIONAL if each.kind == "composite alarm"}
    listed = [each for each in composites(ALARMS) if each.condition is None]

    assert [each.name for each in listed] == list(asked)
    for composite in listed:
        alarm = there[composite.name]
        assert alarm["AlarmRule"].split(" OR ") == [f'ALARM("{name}")' for name in composite.any_of]
        assert alarm["AlarmActions"] == ([NAMES["alert_topic"]] if composite.notifies else [])
        assert alarm["OKActions"] == ([NAMES["alert_topic"]] if composite.tells_recovery else [])
        # The emulator forgets what keeps it back.
        kept_back = [asked[composite.name].get(f"ActionsSuppressor{key}") for key in ("", "WaitPeriod")]
        extension = asked[composite.name].get("ActionsSuppressorExtensionPeriod")
        if composite.suppressor is None:
            assert [*kept_back, extension] == [None, None, None]
        else:
            assert [*kept_back, extension] == [
                composite.suppressor,
                composite.wait_s,
                composite.extension_s,
            ]


def test_ministack_has_every_alarm_and_composite_and_says_what_it_forgot(ministack: boto.Clients) -> None:
    left_out = create(EVERYTHING, ministack, NAMES)
    forgotten = {each.name: each.properties for each in left_out if each.kind not in UNKNOWN}

    for kind, api_kind in (("alarm", "MetricAlarm"), ("composite alarm", "CompositeAlarm")):
        there, asked = described_alarms(ministack, api_kind), wanted(kind)
        assert set(there) == set(asked)
        for name, parameters in asked.items():
            kept = set(parameters) - set(forgotten.get(name, ()))
            assert {key: there[name].get(key) for key in kept} == {key: parameters[key] for key in kept}, name
    # Metric math and suppression, and nothing that anybody looks at without them.
    assert {key for each in forgotten.values() for key in each} <= {
        "Metrics",
        "ThresholdMetricId",
        "ActionsSuppressor",
        "ActionsSuppressorWaitPeriod",
        "ActionsSuppressorExtensionPeriod",
    }
    for alarm in ALARMS:
        if alarm.condition is None:
            assert ("Metrics" in forgotten.get(alarm.name, ())) == (alarm.expression is not None), alarm.name


def test_an_alarm_that_rings_tells_the_topic_once_with_the_way_to_the_runbook(
    ministack: boto.Clients,
) -> None:
    """By its incident's composite, as far as this emulator evaluates alarms."""
    topic = ministack("sns").create_topic(Name="told")["TopicArn"]
    sqs = ministack("sqs")
    queue = sqs.create_queue(QueueName="inbox")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    ministack("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    create(EVERYTHING, ministack, local_names(alert_topic=topic))

    def denied(count: int) -> None:
        dimensions = [{"Name": "Environment", "Value": "local"}]
        data = {"MetricName": "S3AccessDenied", "Value": count, "Unit": "Count", "Dimensions": dimensions}
        ministack("cloudwatch").put_metric_data(Namespace="Capstone", MetricData=[data])

    def told() -> list[dict[str, Any]]:
        messages = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
        for each in messages:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=each["ReceiptHandle"])
        return [json.loads(json.loads(each["Body"])["Message"]) for each in messages]

    denied(5)
    assert described_alarms(ministack, "MetricAlarm")["S3AccessDenied"]["StateValue"] != "ALARM"
    denied(1)
    [notice] = wait_for("the notice", told)

    assert (notice["AlarmName"], notice["NewStateValue"]) == ("AccessDenied", "ALARM")
    assert "Runbook: docs/runbook.md#permission-denied" in notice["AlarmDescription"]
    denied(1)
    assert told() == []


@pytest.mark.parametrize("emulator", ["moto", "ministack"])
def test_groups_and_dashboards_are_there_and_a_second_time_changes_nothing(
    emulator: str, request: pytest.FixtureRequest
) -> None:
    clients: boto.Clients = request.getfixturevalue(emulator)
    first, second = create(EVERYTHING, clients, NAMES), create(EVERYTHING, clients, NAMES)
    groups = clients("logs").describe_log_groups()["logGroups"]

    assert first == second
    assert {each["logGroupName"]: each["retentionInDays"] for each in groups} == {
        each.name: each.retention_days for each in LOG_GROUPS
    }
    for dashboard in DASHBOARDS:
        body = clients("cloudwatch").get_dashboard(DashboardName=dashboard.name)["DashboardBody"]
        assert body == wanted("dashboard")[dashboard.name]["DashboardBody"]
        assert json.loads(body)["widgets"]
        assert "${" not in body


def test_a_changed_entry_is_corrected(moto: boto.Clients) -> None:
    [group] = [each for each in UNCONDITIONAL if each.name == LOG_GROUPS[0].name]
    moto("logs").create_log_group(logGroupName="/somebody/else")
    create([Request("log group", group.name, {**group.parameters, "retentionInDays": 1})], moto, NAMES)
    assert create([group], moto, NAMES) == ()

    groups = moto("logs").describe_log_groups()["logGroups"]
    days = {each["logGroupName"]: each.get("retentionInDays") for each in groups}
    moto("logs").delete_log_group(logGroupName="/somebody/else")
    assert days[group.name] == LOG_GROUPS[0].retention_days
    assert days["/somebody/else"] is None


def stubbed(service: str, answers: Callable[[Stubber], None]) -> boto.Clients:
    """A client that checks each call against AWS's description, and expects exactly these."""
    made = boto3.client(  # type: ignore[call-overload]
        service, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
    )
    stubber = Stubber(made)
    answers(stubber)
    stubber.activate()
    return lambda _: made


def test_saved_queries_are_put_once_with_every_property() -> None:
    asked = [each for each in EVERYTHING if each.kind == "saved query"]
    assert [each.name for each in asked] == [f"capstone/{each.name}" for each in QUERIES]
    there = [
        {"name": each.name, "queryDefinitionId": f"id-{number}", **each.parameters}
        for number, each in enumerate(asked)
    ]

    def answers(stubber: Stubber) -> None:
        for number, each in enumerate(asked):
            found = there[number : number + 1] if number else []  # the first is new
            stubber.add_response(
                "describe_query_definitions",
                {"queryDefinitions": found},
                {"queryDefinitionNamePrefix": each.name},
            )
            known = {"queryDefinitionId": f"id-{number}"} if number else {}
            query = QUERIES[number]
            expected = {
                "name": f"capstone/{query.name}",
                "logGroupNames": list(query.groups),
                "queryString": query.text,
            }
            stubber.add_response("put_query_definition", {"queryDefinitionId": "id"}, {**expected, **known})
        stubber.add_response("describe_query_definitions", {"queryDefinitions": there}, {"maxResults": 1000})

    assert create(asked, stubbed("logs", answers), NAMES) == ()


def test_the_anomaly_detector_is_put_with_the_alarms_series() -> None:
    asked = [each for each in EVERYTHING if each.kind == "anomaly detector"]
    [anomaly] = ANOMALY_ALARMS
    detector = {
        "SingleMetricAnomalyDetector": {
            "Namespace": "Capstone",
            "MetricName": anomaly.series.metric.name,
            "Dimensions": [{"Name": "Environment", "Value": "local"}],
            "Stat": anomaly.series.statistic,
        }
    }

    def answers(stubber: Stubber) -> None:
        stubber.add_response("put_anomaly_detector", {}, detector)
        stubber.add_response("describe_anomaly_detectors", {"AnomalyDetectors": [detector]}, {})

    assert create(asked, stubbed("cloudwatch", answers), NAMES) == ()


def test_a_refused_entry_is_told_and_the_others_are_made() -> None:
    groups = [each for each in EVERYTHING if each.kind == "log group"]

    def answers(stubber: Stubber) -> None:
        stubber.add_client_error("create_log_group", "LimitExceededException", "too many", 400)
        for each in groups[1:]:
            stubber.add_response("create_log_group", {}, {"logGroupName": each.name})
            stubber.add_response("put_retention_policy", {}, dict(each.parameters))
        found = [{"logGroupName": each.name, "retentionInDays": 1} for each in groups[1:]]
        stubber.add_response("describe_log_groups", {"logGroups": found}, {})

    left_out = create(groups, stubbed("logs", answers), NAMES)

    assert left_out[0] == LeftOut("log group", groups[0].name)
    assert LeftOut("log group", groups[1].name, ("retentionInDays",)) in left_out


def test_what_is_left_out_is_said_in_a_sentence() -> None:
    left_out = [
        LeftOut("alarm", "a", ("Metrics",)),
        LeftOut("alarm", "b", ("Metrics", "ThresholdMetricId")),
        LeftOut("alarm", "c", ("Period",)),
        LeftOut("saved query", "d"),
        LeftOut("saved query", "e"),
    ]

    assert sentence(left_out) == "metric math of 2 alarms, Period of 1 alarm, 2 saved queries"
    assert sentence(()) == ""
