"""Logs and metrics of the local stack arrive where those of the containers on AWS do."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capstone_dagster.catalog.log_groups import DAEMON, INTAKE, VIDEO_ANALYSIS, WEBSERVER
from capstone_dagster.local.awslogs import follow, group_of, metric_data
from tests.conftest import Aws
from tests.support.waiting import scaled, wait_for

# The local stack runs on this one.
on_ministack = pytest.mark.parametrize("aws_endpoint", ["ministack"], indirect=True)
ROOT = Path(__file__).resolve().parents[2]
OF_INTAKE = '{"level": "INFO", "component": "intake", "message": "m", "run_id": "r"}'
OF_A_RUN = '{"level": "DEBUG", "component": "analysis", "message": "m", "run_id": "r"}'
EMF: dict[str, Any] = {
    "_aws": {
        "Timestamp": 1_795_000_000_000,
        "CloudWatchMetrics": [
            {
                "Namespace": "Capstone",
                "Dimensions": [["Environment"], ["Environment", "Sensor"]],
                "Metrics": [{"Name": "SensorTickDuration", "Unit": "Seconds"}],
            }
        ],
    },
    "Environment": "local",
    "Sensor": "alerts",
    "SensorTickDuration": 0.5,
}
# Written, killed in the middle of its life: what a worker has said before is in the file.
WORKER = """
import os, signal
from capstone_dagster.standard_output import standard_output
for number in range(700):
    standard_output().write('{"component": "analysis", "run_id": "r", "message": "line %d"}' % number)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("text", "source", "group"),
    [
        (OF_INTAKE, "dagster-code-server", INTAKE.name),
        (OF_A_RUN, "dagster-daemon", VIDEO_ANALYSIS.name),
        ('{"component": "alerts", "message": "m"}', "dagster-daemon", INTAKE.name),
        (json.dumps(EMF), "dagster-daemon", INTAKE.name),
        ("2026-11-30 - dagster.daemon - ERROR - It failed", "dagster-daemon", DAEMON.name),
        ("2026-11-30 - dagster.daemon - \x1b[34mINFO\x1b[0m - Launching", "dagster-daemon", None),
        ("INFO:     127.0.0.1 - GET /server_info", "dagster-webserver", None),
        ("Traceback (most recent call last):", "dagster-webserver", WEBSERVER.name),
        ("", "dagster-daemon", None),
        ("{not JSON", "dagster-daemon", DAEMON.name),
        ("[]", "dagster-daemon", DAEMON.name),
    ],
)
def test_a_line_goes_to_the_log_group_of_its_container(text: str, source: str, group: str | None) -> None:
    assert group_of(text, source) == group


def test_metrics_are_extracted_as_cloudwatch_does() -> None:
    data = list(metric_data(json.dumps(EMF)))

    assert [[(d["Name"], d["Value"]) for d in datum["Dimensions"]] for _, datum in data] == [
        [("Environment", "local")],
        [("Environment", "local"), ("Sensor", "alerts")],
    ]
    for namespace, datum in data:
        assert (namespace, datum["MetricName"], datum["Unit"], datum["Value"], datum["Timestamp"]) == (
            "Capstone", "SensorTickDuration", "Seconds", 0.5, 1_795_000_000,
        )  # fmt: skip
    assert list(metric_data(OF_A_RUN)) == []


def clients(aws: Aws) -> dict[str, Any]:
    return {service: aws.client(service) for service in ("logs", "cloudwatch")}


@pytest.fixture
def folder(aws: Aws, tmp_path: Path) -> Iterator[Path]:
    """A folder whose files are followed."""
    stop = threading.Event()
    following = threading.Thread(target=follow, args=(tmp_path, stop, clients(aws)))
    following.start()
    yield tmp_path
    stop.set()
    following.join(scaled(30))
    assert not following.is_alive()


def messages(aws: Aws, group: str = VIDEO_ANALYSIS.name) -> list[str]:
    events = aws.client("logs").filter_log_events(logGroupName=group)["events"]
    return [json.loads(event["message"])["message"] for event in events if "message" in event["message"]]


@on_ministack
def test_a_killed_worker_loses_no_line_of_its_logs(aws: Aws, folder: Path) -> None:
    with (folder / "dagster-code-server.log").open("ab") as log:
        worker = subprocess.run([sys.executable, "-c", WORKER], stdout=log, cwd=ROOT, check=False)

    assert worker.returncode == -signal.SIGKILL
    wait_for("all lines", lambda: len(messages(aws)) >= 700)
    assert sorted(messages(aws)) == sorted(f"line {number}" for number in range(700))


@on_ministack
def test_logs_go_on_in_the_file_of_the_next_process(aws: Aws, folder: Path) -> None:
    path = folder / "dagster-daemon.log"
    path.write_text('{"component": "alerts", "message": "first"}\n{"component": "alerts", "mess')
    wait_for("the first line", lambda: messages(aws, INTAKE.name) == ["first"])
    with path.open("a") as log:
        log.write('age": "second"}\n')
    os.replace(path, folder / "dagster-daemon.log.previous")
    path.write_text('{"component": "alerts", "message": "third"}\n' + json.dumps(EMF) + "\n")

    wait_for("the rest", lambda: sorted(messages(aws, INTAKE.name)) == ["first", "second", "third"])
    wait_for(
        "the metric",
        lambda: aws.client("cloudwatch").list_metrics(MetricName="SensorTickDuration")["Metrics"],
    )


@on_ministack
def test_logs_that_cloudwatch_does_not_take_are_sent_again(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster-daemon.log").write_text('{"component": "alerts", "message": "kept"}\n')
    logs = aws.client("logs")
    logs.delete_log_group(logGroupName=INTAKE.name)
    stop = threading.Event()
    following = threading.Thread(target=follow, args=(tmp_path, stop, clients(aws)))
    following.start()
    try:
        wait_for("a refusal", lambda: following.is_alive())
        logs.create_log_group(logGroupName=INTAKE.name)
        wait_for("the line", lambda: messages(aws, INTAKE.name) == ["kept"])
    finally:
        stop.set()
        following.join(scaled(30))
