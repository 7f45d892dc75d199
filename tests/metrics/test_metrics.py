"""Metrics: what is published is declared, in CloudWatch's format, and never costs a run anything."""

import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstone_dagster.catalog.metrics import (
    DETECTIONS_PER_VIDEO,
    EVENTS_PER_VIDEO,
    METRICS,
    RUNS_FAILED,
    RUNS_STARTED,
    SENSOR_TICK_DURATION,
)
from capstone_dagster.catalog.model import Metric
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.metrics import emission as module
from capstone_dagster.metrics.emission import MetricRefused, Metrics
from capstone_dagster.settings import read_settings
from capstone_dagster.standard_output import StandardOutput
from tests.support.waiting import scaled

VIDEO_ID = "walk-0f3c9a1e"
UPLOAD_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
RUN_ID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


class Stdout:
    """A pipe that can stand in for this process's standard output."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)

    def emf(self) -> Metrics:
        """Metrics of a process that has this standard output."""
        return Metrics(
            read_settings(metrics="emf", environment="prod"), output=StandardOutput(self.write_end)
        )

    def lines(self) -> list[dict[str, Any]]:
        """What was written since the last call."""
        data = b""
        while True:
            try:
                data += os.read(self.read_end, 1 << 16)
            except BlockingIOError:
                return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def stdout() -> Iterator[Stdout]:
    pipe = Stdout()
    yield pipe
    os.close(pipe.read_end)
    os.close(pipe.write_end)


def test_a_metric_is_published_alone_and_by_each_dimension(stdout: Stdout) -> None:
    stdout.emf().add(RUNS_FAILED, 2, failure_class="worker-lost")
    (line,) = stdout.lines()
    (about,) = line.pop("_aws")["CloudWatchMetrics"]
    assert about == {
        "Namespace": "Capstone",
        "Dimensions": [["Environment"], ["Environment", "FailureClass"]],
        "Metrics": [{"Name": "RunsFailed", "Unit": "Count"}],
    }
    assert line == {"Environment": "prod", "FailureClass": "worker-lost", "RunsFailed": 2}


def test_metrics_that_belong_together_share_a_line(stdout: Stdout) -> None:
    stdout.emf().add_all({DETECTIONS_PER_VIDEO: 120, EVENTS_PER_VIDEO: 7})
    (line,) = stdout.lines()
    assert (line["DetectionsPerVideo"], line["EventsPerVideo"]) == (120, 7)
    assert line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["Environment"]]


def test_a_zero_of_the_total_needs_no_further_dimension(stdout: Stdout) -> None:
    stdout.emf().add(RUNS_FAILED, 0)
    (line,) = stdout.lines()
    assert line["RunsFailed"] == 0
    assert line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["Environment"]]


UNDECLARED = Metric("Sheep", "Count", "counter", "Jumped over the fence.")
REFUSED: list[tuple[Metric, Any, dict[str, str], str]] = [
    (UNDECLARED, 1, {}, "declare"),
    (RUNS_STARTED, 1, {"camera": "north"}, "dimensions"),
    (RUNS_FAILED, 1, {}, "dimensions"),
    (RUNS_FAILED, 0, {"camera": "north"}, "dimensions"),
    (RUNS_STARTED, math.nan, {}, "finite"),
    (RUNS_STARTED, math.inf, {}, "finite"),
    (RUNS_STARTED, "3", {}, "finite"),
    (RUNS_STARTED, None, {}, "finite"),
    (RUNS_FAILED, 1, {"failure_class": VIDEO_ID}, "looks like an id"),
    (RUNS_FAILED, 1, {"failure_class": UPLOAD_ID}, "looks like an id"),
    (RUNS_FAILED, 1, {"failure_class": RUN_ID}, "looks like an id"),
    (RUNS_FAILED, 1, {"failure_class": "84"}, "looks like an id"),
    (RUNS_FAILED, 1, {"failure_class": "cam-20250526"}, "looks like an id"),
    (RUNS_FAILED, 1, {"failure_class": ""}, "looks like an id"),
]


@pytest.mark.parametrize(("metric", "value", "dimensions", "message"), REFUSED)
def test_metrics_that_are_not_declared_so_fail_a_test_and_are_logged_once_in_production(
    metric: Metric,
    value: Any,
    dimensions: dict[str, str],
    message: str,
    stdout: Stdout,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = stdout.emf()
    with pytest.raises(MetricRefused, match=message):
        metrics.add(metric, value, **dimensions)
    monkeypatch.setattr(module, "strict", False)
    for _ in range(3):
        metrics.add(metric, value, **dimensions)
    metrics.add(RUNS_STARTED)
    assert [line["RunsStarted"] for line in stdout.lines()] == [1]
    (record,) = [record for record in caplog.records if record.name == "capstone.metrics"]
    assert record.levelno == logging.WARNING
    assert message in record.getMessage()


def test_a_dimension_takes_few_values() -> None:
    metrics = Metrics(read_settings())
    names = [f"sensor_{chr(ord('a') + n // 26)}{chr(ord('a') + n % 26)}" for n in range(33)]
    for name in names[:32]:
        metrics.add(SENSOR_TICK_DURATION, 1.0, sensor=name)
    metrics.add(SENSOR_TICK_DURATION, 1.0, sensor=names[0])
    with pytest.raises(MetricRefused, match="more than 32"):
        metrics.add(SENSOR_TICK_DURATION, 1.0, sensor=names[32])


def test_every_failure_class_is_a_dimensions_value() -> None:
    metrics = Metrics(read_settings())
    for failure in FailureClass:
        metrics.add(RUNS_FAILED, 1, failure_class=failure.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    metric=st.one_of(st.sampled_from(METRICS), st.none(), st.text()),
    value=st.one_of(st.floats(), st.integers(), st.none(), st.text(), st.binary()),
    dimensions=st.dictionaries(
        st.sampled_from(["failure_class", "sensor", "service", "x"]), st.one_of(st.text(), st.integers())
    ),
)
def test_metrics_never_raise_in_production(
    metric: Any, value: Any, dimensions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "strict", False)
    Metrics(read_settings()).add(metric, value, **dimensions)


def test_metrics_that_are_off_write_nothing(stdout: Stdout) -> None:
    Metrics(read_settings(), output=StandardOutput(stdout.write_end)).add(RUNS_STARTED)
    assert stdout.lines() == []


def test_metrics_do_not_wait_for_a_reader_that_stands_still(
    stdout: Stdout, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = stdout.emf()

    def fill() -> None:
        for _ in range(2000):
            metrics.add(RUNS_STARTED)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    thread.join(timeout=scaled(30))
    assert not thread.is_alive()
    written = sum(line["RunsStarted"] for line in stdout.lines())
    assert written < 2000
    # The reader goes on: what was lost meanwhile is counted.
    metrics.add(RUNS_STARTED)
    started, dropped = stdout.lines()
    assert started["RunsStarted"] == 1
    assert (dropped["TelemetryDropped"], dropped["Channel"]) == (2000 - written, "stdout")
    (record,) = [record for record in caplog.records if record.name == "capstone.metrics"]
    assert "takes nothing" in record.getMessage()


def test_metrics_survive_a_standard_output_that_is_gone() -> None:
    program = """
import os
from capstone_dagster.catalog.metrics import RUNS_STARTED
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.settings import read_settings
from tests.support.waiting import scaled
os.close({closed})
metrics = Metrics(read_settings(metrics="emf"))
metrics.add(RUNS_STARTED)
metrics.add(RUNS_STARTED)
"""
    for closed in (1, 0):  # none at all; one that nobody reads
        with subprocess.Popen(
            [sys.executable, "-c", program.format(closed=closed)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait(timeout=scaled(60)) == 0
