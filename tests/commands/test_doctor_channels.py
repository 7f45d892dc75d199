"""`capstone doctor` says which way of telling is broken, why, and what to do."""

import time
from typing import Any

import pytest

from capstone_dagster.catalog.log_groups import BATCH_JOB, INTAKE
from capstone_dagster.commands import channels
from capstone_dagster.commands.channels import Wrong
from capstone_dagster.traces.tracer import ENDPOINT_VARIABLES
from tests.conftest import Aws
from tests.traces.collector import collector


def test_log_lines_that_arrive_are_told_from_those_that_do_not(aws: Aws) -> None:
    with pytest.raises(Wrong, match=f"no line has reached {INTAKE.name} for 300 s") as wrong:
        channels.log_lines()
    assert "awslogs" in wrong.value.remedy
    logs = aws.client("logs")
    logs.create_log_stream(logGroupName=INTAKE.name, logStreamName="s")
    event: Any = {"timestamp": round(time.time() * 1000), "message": "{}"}
    logs.put_log_events(logGroupName=INTAKE.name, logStreamName="s", logEvents=[event])
    assert channels.log_lines().startswith(f"the newest in {INTAKE.name} is ")


def test_log_groups_are_compared_with_the_list(aws: Aws) -> None:
    client = aws.client("logs")
    assert channels.log_groups(BATCH_JOB.name).startswith("5 groups")
    with pytest.raises(Wrong, match="there is no log group /other/jobs"):
        channels.log_groups("/other/jobs")
    client.put_retention_policy(logGroupName=INTAKE.name, retentionInDays=90)
    with pytest.raises(Wrong, match="/capstone/intake is kept 90 days, the list says 7 days"):
        channels.log_groups(BATCH_JOB.name)


@pytest.mark.parametrize(
    ("status", "message"), [(200, "takes spans"), (401, "answers 401"), (404, "answers 404")]
)
def test_a_collector_is_asked_with_nothing(
    status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as served:
        served.status = status
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", served.endpoint)
        if status == 200:
            assert message in channels.traces(ENDPOINT_VARIABLES)
        else:
            with pytest.raises(Wrong, match=message):
                channels.traces(ENDPOINT_VARIABLES)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense", "http://127.0.0.1:99999"])
def test_a_collector_that_is_not_there_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)

    with pytest.raises(Wrong, match="does not answer") as wrong:
        channels.traces(ENDPOINT_VARIABLES)
    assert "a collector runs" in wrong.value.remedy


def test_without_a_collector_traces_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    assert "traces are off" in channels.traces(ENDPOINT_VARIABLES)
