"""What is in the spool arrives in CloudWatch, in order, within its limits, whatever CloudWatch does."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from capstone_dagster.catalog.metrics import DETECTIONS_PER_VIDEO, RUNS_FAILED
from capstone_dagster.local.aws import aws_environment
from capstone_dagster.logs.shipping.outlets import Pace
from capstone_dagster.logs.shipping.shipper import METRICS_CHANNEL, Shipper
from capstone_dagster.logs.shipping.shipper_status import read_status
from capstone_dagster.logs.spool import Spool, losses, segments
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.settings import Settings, read_settings
from tests.conftest import Aws
from tests.support.cloudwatch import (
    BROKEN,
    FORBIDDEN,
    INVALID,
    THROTTLED,
    Answer,
    Call,
    ScriptedCloudWatch,
    scripted_cloudwatch,
)
from tests.support.waiting import wait_for

GROUP = "/capstone/video-analysis"
OTHER = "/capstone/intake"
QUICK = Pace(
    idle=0.02, metrics=0.0, first_retry=0.02, last_retry=0.1, refused=0.2, report=0.0, connect=0.5, read=0.5
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    spool = Spool(folder, 64 * 1024 * 1024)
    yield spool
    spool.close()


@pytest.fixture
def cloudwatch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedCloudWatch]:
    with scripted_cloudwatch() as endpoint:
        for name, value in aws_environment(endpoint.endpoint_url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield endpoint


@pytest.fixture
def settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("CAPSTONE_LOG_SPOOL", str(folder))
    monkeypatch.setenv("CAPSTONE_METRICS", "put")
    return read_settings()


@pytest.fixture
def shipper(folder: Path, settings: Settings) -> Shipper:
    return Shipper(folder, settings, pace=QUICK, host="host")


def line(number: int, at: datetime | None = None, **fields: Any) -> str:
    moment = at or datetime.now(UTC)
    return json.dumps({"timestamp": moment.isoformat(timespec="milliseconds"), "number": number, **fields})


def numbers(messages: list[str]) -> list[int]:
    return [json.loads(message)["number"] for message in messages]


def ship_until(shipper: Shipper, done: Callable[[], Any], what: str = "the lines") -> None:
    def shipped() -> Any:
        shipper.ship()
        return done()

    wait_for(what, shipped, deadline_s=20)


def unread(folder: Path) -> int:
    return sum(segment.path.stat().st_size for segment in segments(folder))


def test_logs_arrive_in_order_and_nothing_is_left(
    aws: Aws, spool: Spool, folder: Path, settings: Settings
) -> None:
    """Against both emulators, which make the same of it."""
    client = aws.client("logs")
    client.create_log_group(logGroupName=GROUP)  # the other is made by the shipper, as locally it may
    for number in range(300):
        spool.append(GROUP if number % 3 else OTHER, line(number, text="ü\nü"))
    spool.close()

    assert Shipper(folder, settings, pace=QUICK).drain(10)

    for group, wanted in ((GROUP, [n for n in range(300) if n % 3]), (OTHER, list(range(0, 300, 3)))):
        [stream] = client.describe_log_streams(logGroupName=group)["logStreams"]
        assert stream["logStreamName"].startswith(datetime.now(UTC).strftime("%Y/%m/%d/"))
        events = client.get_log_events(
            logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True, limit=1000
        )["events"]
        assert numbers([event["message"] for event in events]) == wanted
    assert segments(folder) == []


def test_metrics_arrive_as_numbers(aws: Aws, folder: Path, settings: Settings) -> None:
    metrics = Metrics(settings)
    for value in (4.0, 4.0, 10.0):
        metrics.add(DETECTIONS_PER_VIDEO, value)
    metrics.add(RUNS_FAILED, 2, failure_class="timeout")

    assert Shipper(folder, settings, pace=QUICK).drain(10)

    client = aws.client("cloudwatch")

    def sum_of(name: str, **dimensions: str) -> tuple[float, float]:
        answer = client.get_metric_statistics(
            Namespace="Capstone",
            MetricName=name,
            Dimensions=[
                {"Name": key, "Value": value} for key, value in {"Environment": "local", **dimensions}.items()
            ],
            StartTime=datetime.now(UTC) - timedelta(minutes=10),
            EndTime=datetime.now(UTC) + timedelta(minutes=10),
            Period=3600,
            Statistics=["Sum", "SampleCount"],
        )
        points = answer["Datapoints"]
        return sum(point["Sum"] for point in points), sum(point["SampleCount"] for point in points)

    assert sum_of("DetectionsPerVideo") == (18, 3)
    assert sum_of("RunsFailed", FailureClass="timeout") == (2, 1)


def test_without_put_lines_that_carry_metrics_are_lines(
    cloudwatch: ScriptedCloudWatch, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Metrics(settings).add(RUNS_FAILED, 2, failure_class="timeout")
    monkeypatch.setenv("CAPSTONE_METRICS", "emf")

    assert Shipper(folder, read_settings(), pace=QUICK).drain(10)

    assert len(cloudwatch.messages(GROUP)) == 1
    assert cloudwatch.data == []


def test_every_batch_is_within_the_limits_of_the_api(
    cloudwatch: ScriptedCloudWatch, spool: Spool, shipper: Shipper
) -> None:
    now = datetime.now(UTC)
    sizes = [10] * 12_000 + [200_000] * 12 + [300_000]
    for number, size in enumerate(sizes):
        # Minutes and days apart, and now and then a little back in time, as threads write them.
        at = now - timedelta(hours=30) + timedelta(seconds=number * 8 - (number % 5))
        assert spool.append(GROUP, line(number, at, text="x" * size))

    ship_until(shipper, lambda: len(cloudwatch.messages(GROUP)) == len(sizes))

    batches = [call.input["logEvents"] for call in cloudwatch.calls if call.operation == "PutLogEvents"]
    for batch in batches:
        times = [event["timestamp"] for event in batch]
        assert len(batch) <= 10_000
        assert sum(len(event["message"].encode()) + 26 for event in batch) <= 1_048_576
        assert all(len(event["message"].encode()) + 26 <= 256 * 1024 for event in batch)
        assert times == sorted(times)
        assert times[-1] - times[0] < 24 * 3600 * 1000
    assert len(batches) < 20, "they are full, too"
    assert "[cut, " in cloudwatch.messages(GROUP)[-1]


def test_each_writers_day_is_a_stream(
    cloudwatch: ScriptedCloudWatch, spool: Spool, folder: Path, shipper: Shipper
) -> None:
    other = Spool(folder, 64 * 1024 * 1024)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    spool.append(GROUP, line(0, midnight - timedelta(seconds=1)))
    spool.append(GROUP, line(1, midnight))
    other.append(GROUP, line(2, midnight))

    ship_until(shipper, lambda: len(cloudwatch.messages(GROUP)) == 3)

    assert {stream.split("/host/")[0] for _, stream in cloudwatch.events} == {
        (midnight - timedelta(days=1)).strftime("%Y/%m/%d"),
        midnight.strftime("%Y/%m/%d"),
    }
    assert len(cloudwatch.events) == 3


TROUBLES = {
    "throttling": THROTTLED,
    "500": BROKEN,
    "503": Answer("ServiceUnavailableException", 503),
    "no answer": Answer(hang_s=1.0),
    "closed connection": Answer(drop=True),
    "no permission": FORBIDDEN,
    "expired token": Answer("ExpiredTokenException", 400),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_whatever_passes_costs_no_line_and_is_told_once_with_its_end(
    cloudwatch: ScriptedCloudWatch,
    spool: Spool,
    folder: Path,
    shipper: Shipper,
    settings: Settings,
    trouble: Answer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="capstone")
    cloudwatch.script = lambda call: trouble
    for number in range(20):
        spool.append(GROUP, line(number))
        spool.append(OTHER, line(number))
    Metrics(settings).add(RUNS_FAILED, 3, failure_class="timeout")

    def failed_often() -> bool:
        tries = [call.operation for call in cloudwatch.calls]
        return tries.count("PutMetricData") >= 3 and len(tries) >= 8

    ship_until(shipper, failed_often, "the failures")
    status = read_status(folder)
    assert status is not None
    wrong = {name for name, each in status.channels.items() if each.last_error and each.remedy}
    assert METRICS_CHANNEL in wrong
    assert wrong & {GROUP, OTHER}
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    # Of CloudWatch Logs, or of each of two groups; and of metrics.
    assert 2 <= len(warnings) <= 3
    assert len({record.getMessage() for record in warnings}) == len(warnings)

    caplog.clear()
    cloudwatch.script = lambda call: Answer()
    if trouble.hang_s:  # those that were given up do arrive: at least once
        ship_until(shipper, lambda: set(numbers(cloudwatch.messages(GROUP))) == set(range(20)))
    else:
        ship_until(shipper, lambda: numbers(cloudwatch.messages(GROUP)) == list(range(20)))
        ship_until(shipper, lambda: numbers(cloudwatch.messages(OTHER)) == list(range(20)))
        ship_until(shipper, lambda: cloudwatch.total("RunsFailed") == 3)
    ship_until(shipper, lambda: "takes lines again" in caplog.text)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_logs_stay_in_order_over_many_segments_while_calls_fail_now_and_then(
    cloudwatch: ScriptedCloudWatch, folder: Path, settings: Settings
) -> None:
    # Without a rest after a failure, in which nothing could be overtaken.
    shipper = Shipper(folder, settings, pace=replace(QUICK, first_retry=0.0, last_retry=0.0), host="host")
    cloudwatch.script = lambda call: Answer() if len(cloudwatch.calls) % 3 == 0 else THROTTLED
    spools = [Spool(folder, 2 * 1024 * 1024) for _ in range(2)]
    for number in range(400):
        for spool in spools:
            assert spool.append(GROUP, line(number, text="x" * 1000))
    assert len(segments(folder)) >= 6

    ship_until(shipper, lambda: len(cloudwatch.messages(GROUP)) == 800)

    assert len(cloudwatch.events) == 2
    for events in cloudwatch.events.values():
        assert numbers([event["message"] for event in events]) == list(range(400))


def test_a_group_that_may_not_be_written_to_holds_up_no_other(
    cloudwatch: ScriptedCloudWatch, spool: Spool, shipper: Shipper, settings: Settings
) -> None:
    def script(call: Call) -> Answer:
        return FORBIDDEN if call.input.get("logGroupName") == OTHER else Answer()

    cloudwatch.script = script
    for number in range(10):
        spool.append(OTHER, line(number))
        spool.append(GROUP, line(number))
    Metrics(settings).add(RUNS_FAILED, 3, failure_class="timeout")

    ship_until(shipper, lambda: len(cloudwatch.messages(GROUP)) == 10 and cloudwatch.total("RunsFailed") == 3)
    assert cloudwatch.messages(OTHER) == []


def test_a_line_that_is_refused_for_itself_is_dropped_alone_and_counted(
    cloudwatch: ScriptedCloudWatch, spool: Spool, folder: Path, shipper: Shipper
) -> None:
    def script(call: Call) -> Answer:
        poisoned = any("poison" in event["message"] for event in call.input.get("logEvents", ()))
        return INVALID if poisoned else Answer()

    cloudwatch.script = script
    for number in range(100):
        spool.append(GROUP, line(number, text="poison" if number == 41 else "sound"))

    ship_until(shipper, lambda: len(cloudwatch.messages(GROUP)) == 99)
    assert numbers(cloudwatch.messages(GROUP)) == [n for n in range(100) if n != 41]
    # And the loss is told by the same way.
    ship_until(shipper, lambda: cloudwatch.total("TelemetryDropped") == 1, "the metric")
    status = read_status(folder)
    assert status is not None
    assert status.channels[GROUP].dropped == 1


def test_lines_that_are_too_old_are_counted(
    cloudwatch: ScriptedCloudWatch, spool: Spool, folder: Path, shipper: Shipper
) -> None:
    cloudwatch.script = lambda call: Answer(
        body={"rejectedLogEventsInfo": {"tooOldLogEventEndIndex": 2, "tooNewLogEventStartIndex": 4}}
        if call.operation == "PutLogEvents"
        else {}
    )
    for number in range(5):
        spool.append(GROUP, line(number))

    ship_until(shipper, lambda: cloudwatch.total("TelemetryDropped") == 3, "the metric")
    status = read_status(folder)
    assert status is not None
    assert (status.channels[GROUP].sent, status.channels[GROUP].dropped) == (2, 3)


def test_what_the_spool_had_no_room_for_is_told(
    cloudwatch: ScriptedCloudWatch, folder: Path, settings: Settings
) -> None:
    small = Spool(folder, 20_000)
    kept = sum(small.append(GROUP, line(number, text="x" * 500)) for number in range(100))
    assert 0 < kept < 100
    small.close()

    shipper = Shipper(folder, settings, pace=QUICK)
    ship_until(shipper, lambda: cloudwatch.total("TelemetryDropped") == 100 - kept, "the metric")
    assert len(cloudwatch.messages(GROUP)) == kept
    assert losses(folder) == []
    # And not once more by the next one.
    assert shipper.drain(5)
    assert Shipper(folder, settings, pace=QUICK).drain(5)
    assert cloudwatch.total("TelemetryDropped") == 100 - kept


def test_a_restart_goes_on_where_the_last_one_was(
    cloudwatch: ScriptedCloudWatch, spool: Spool, folder: Path, settings: Settings
) -> None:
    for number in range(10):
        spool.append(GROUP, line(number))
    Metrics(settings).add(RUNS_FAILED, 3, failure_class="timeout")
    assert Shipper(folder, settings, pace=QUICK).drain(5)
    for number in range(10, 20):
        spool.append(GROUP, line(number))
    assert Shipper(folder, settings, pace=QUICK).drain(5)
    assert numbers(cloudwatch.messages(GROUP)) == list(range(20))
    assert cloudwatch.total("RunsFailed") == 3


def test_what_cannot_be_sent_makes_room_before_the_spool_is_full(
    cloudwatch: ScriptedCloudWatch, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudwatch.script = lambda call: FORBIDDEN if call.input.get("logGroupName") == OTHER else Answer()
    monkeypatch.setenv("CAPSTONE_LOG_SPOOL_MB", "1")
    shipper = Shipper(folder, read_settings(), pace=QUICK)
    spool = Spool(folder, 1024 * 1024)
    written = iter(range(1_000_000))

    def shed() -> bool:
        for _ in range(20):
            spool.append(OTHER, line(next(written), text="x" * 2000))
        status = read_status(folder)
        return bool(status and OTHER in status.channels and status.channels[OTHER].dropped)

    ship_until(shipper, shed, "the older lines to make room")
    assert spool.append(GROUP, line(-1))
    ship_until(shipper, lambda: cloudwatch.messages(GROUP))
    assert spool.lost == 0


def test_credentials_that_come_later_are_found(
    cloudwatch: ScriptedCloudWatch, spool: Spool, shipper: Shipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = os.environ["AWS_ACCESS_KEY_ID"]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    spool.append(GROUP, line(0))
    ship_until(shipper, lambda: _error(shipper, spool, "credentials"), "the complaint")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key)
    ship_until(shipper, lambda: cloudwatch.messages(GROUP))


def test_a_missing_region_is_told_with_its_variable(
    cloudwatch: ScriptedCloudWatch,
    spool: Spool,
    folder: Path,
    shipper: Shipper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    spool.append(GROUP, line(0))
    ship_until(shipper, lambda: _error(shipper, spool, "region"), "the complaint")
    status = read_status(folder)
    assert status is not None
    assert "AWS_REGION" in str(status.channels[GROUP].remedy)


def _error(shipper: Shipper, spool: Spool, word: str) -> bool:
    status = read_status(Path(os.environ["CAPSTONE_LOG_SPOOL"]))
    return status is not None and any(word in str(each.last_error) for each in status.channels.values())


def test_an_endpoint_that_never_answers_holds_up_neither_writers_nor_the_end(
    cloudwatch: ScriptedCloudWatch, spool: Spool, folder: Path, settings: Settings
) -> None:
    release = threading.Event()

    def script(call: Call) -> Answer:
        release.wait(60)
        return Answer(drop=True)

    cloudwatch.script = script
    patient = Pace(idle=0.02, metrics=0.0, read=30.0)
    stop = threading.Event()
    thread = threading.Thread(
        target=Shipper(folder, settings, pace=patient).run, args=(stop, 0.5), daemon=True
    )
    thread.start()
    spool.append(GROUP, line(0))
    wait_for("the call that hangs", lambda: cloudwatch.calls)
    started = time.monotonic()
    for number in range(1000):
        assert spool.append(GROUP, line(number))
    assert time.monotonic() - started < 10, "writers wait for nobody"
    release.set()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert unread(folder) > 0, "what was not sent is there for the next one"


def test_one_shipper_at_a_time_works_on_a_folder(
    cloudwatch: ScriptedCloudWatch, spool: Spool, folder: Path, settings: Settings, shipper: Shipper
) -> None:
    shipper.ship()
    spool.append(GROUP, line(0))
    second = Shipper(folder, settings, pace=QUICK)
    assert second.drain(1)
    assert cloudwatch.messages(GROUP) == []
    assert shipper.drain(5)
    assert len(cloudwatch.messages(GROUP)) == 1


def test_as_a_process_it_drains_when_asked_to_stop(
    cloudwatch: ScriptedCloudWatch, spool: Spool, folder: Path, settings: Settings
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "capstone_dagster.logs.shipping.shipper", "--spool", str(folder)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    try:
        spool.append(GROUP, line(0))
        wait_for("the first line", lambda: cloudwatch.messages(GROUP))
        spool.append(GROUP, line(1))
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert numbers(cloudwatch.messages(GROUP)) == [0, 1]
    status = read_status(folder)
    assert status is not None
    assert status.channels[GROUP].sent == 2
    assert METRICS_CHANNEL in status.channels
