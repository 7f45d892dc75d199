"""`capstone doctor` says which way of telling is broken, why, and what to do."""

import json
import time
from pathlib import Path

import pytest

from capstone_dagster.catalog.log_groups import INTAKE, LOG_GROUPS
from capstone_dagster.commands import channels
from capstone_dagster.commands.channels import Wrong
from capstone_dagster.logs.shipping.shipper_status import STATUS_FILE
from capstone_dagster.settings import read_settings
from capstone_dagster.traces.tracer import ENDPOINT_VARIABLES
from tests.conftest import Aws
from tests.traces.collector import collector

SHIPPER = {"pid": 1, "waiting_bytes": 10, "lost": 2, "told": {}, "counted": {}}
CHANNEL = {"last_success": 1.0, "last_failure": None, "last_error": None, "remedy": None, "sent": 5}


def shipper(folder: Path, *, age_s: float = 0, **channel: object) -> str:
    told = {**SHIPPER, "updated": time.time() - age_s, "channels": {INTAKE.name: CHANNEL | channel}}
    (folder / STATUS_FILE).write_text(json.dumps(told))
    return channels.shipping(read_settings(log_spool=str(folder)))


def test_a_shipper_that_works_says_how_much(tmp_path: Path) -> None:
    assert (
        shipper(tmp_path, dropped=1) == f"5 sent, 10 bytes wait in {tmp_path}; 3 were given up since it began"
    )


@pytest.mark.parametrize(
    ("fault", "told", "remedy"),
    [
        (
            {"last_error": "AccessDenied", "remedy": "Grant logs:PutLogEvents."},
            "AccessDenied",
            "Grant logs:Put",
        ),
        ({"age_s": 3600}, "no shipper has reported for 3,600 s", "supervisor"),
    ],
)
def test_a_shipper_that_does_not_is_told_with_the_remedy(
    fault: dict[str, object], told: str, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(Wrong, match=told) as wrong:
        shipper(tmp_path, **fault)  # type: ignore[arg-type]
    assert remedy in wrong.value.remedy


def test_no_shipper_and_no_spool_are_told(tmp_path: Path) -> None:
    with pytest.raises(Wrong, match="no shipper has reported yet"):
        channels.shipping(read_settings(log_spool=str(tmp_path)))
    with pytest.raises(Wrong, match="CAPSTONE_LOG_SPOOL is not set"):
        channels.shipping(read_settings())


def test_log_groups_are_compared_with_the_list(aws: Aws) -> None:
    client = aws.client("logs")
    with pytest.raises(Wrong, match="there is no log group /capstone/intake"):
        channels.log_groups()
    for group in LOG_GROUPS:
        client.create_log_group(logGroupName=group.name)
        client.put_retention_policy(logGroupName=group.name, retentionInDays=group.retention_days)
    assert channels.log_groups().startswith("5 groups")
    client.put_retention_policy(logGroupName=INTAKE.name, retentionInDays=90)
    with pytest.raises(Wrong, match="/capstone/intake is kept 90 days, the list says 7 days"):
        channels.log_groups()


@pytest.mark.parametrize(
    ("status", "told"), [(200, "takes spans"), (401, "answers 401"), (404, "answers 404")]
)
def test_a_collector_is_asked_with_nothing(status: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as served:
        served.status = status
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", served.endpoint)
        if status == 200:
            assert told in channels.traces(ENDPOINT_VARIABLES)
        else:
            with pytest.raises(Wrong, match=told):
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
