"""Spans reach a collector, or are given up without anybody waiting for it."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from capstone_dagster.traces import tracer as tracer_module
from capstone_dagster.traces.context import TraceContext, upload_context
from capstone_dagster.traces.tracer import Span, Tracer
from tests.support.waiting import scaled, wait_for
from tests.traces.collector import Collector, collector

UPLOAD = "0123456789abcdef" * 4
CONTEXT = upload_context(UPLOAD)


@pytest.fixture
def receiving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    tracer_module._warned.clear()
    with collector() as served:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", served.endpoint)
        yield served


def test_a_span_arrives_as_it_was_recorded(receiving: Collector) -> None:
    tracer = Tracer("capstone", "local")
    child = CONTEXT.child("work")

    tracer.record(Span("work", child, CONTEXT, 1000.25, 1002.5, {"rows": 3}, "it broke"))
    tracer.flush()

    span = receiving.named("work")
    assert (span.trace_id.hex(), span.span_id.hex()) == (UPLOAD[:32], child.span_id)
    assert span.parent_span_id.hex() == CONTEXT.span_id
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000_250_000_000, 1_002_500_000_000)
    assert (span.status.code, span.status.message) == (2, "it broke")
    assert span.attributes[0].value.int_value == 3
    assert receiving.services == {"capstone"}


def test_blocks_are_children_of_the_blocks_around_them(receiving: Collector) -> None:
    tracer = Tracer("capstone", "local")

    with tracer.within(CONTEXT), tracer.span("outer"):
        with tracer.span("first"):
            pass
        with pytest.raises(KeyError), tracer.span("second"):
            raise KeyError("lost")
    with tracer.span("outside of any trace"):
        pass
    tracer.flush()

    outer = receiving.named("outer")
    assert outer.parent_span_id.hex() == CONTEXT.span_id
    for name in ("first", "second"):
        assert receiving.named(name).parent_span_id == outer.span_id
    assert "lost" in receiving.named("second").status.message
    assert len(receiving.spans) == 3


def test_no_secret_is_in_what_went_wrong(receiving: Collector) -> None:
    tracer = Tracer("capstone", "local")
    error = "ConnectionError: postgresql://capstone:hunter2hunter2@db/capstone does not answer"

    tracer.record(Span("work", CONTEXT, None, 1, 2, error=error))
    tracer.flush()

    message = receiving.named("work").status.message
    assert "does not answer" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("unwanted", ["no collector", "not sampled"])
def test_nothing_is_sent_where_nothing_is_wanted(
    receiving: Collector, unwanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unwanted == "no collector":
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    tracer = Tracer("capstone", "local")
    context = TraceContext(CONTEXT.trace_id, CONTEXT.span_id, sampled=unwanted == "no collector")

    tracer.record(Span("work", context, None, 1, 2))
    tracer.flush()

    assert tracer.enabled is (unwanted == "not sampled")
    assert receiving.spans == []


@pytest.mark.parametrize("fault", ["refuses", "away", "hangs"])
def test_a_broken_collector_costs_its_spans_and_one_warning(
    receiving: Collector, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracer_module, "_EXPORT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(tracer_module, "_EXPORT_INTERVAL_MS", 100)
    if fault == "refuses":
        receiving.status = 403
    elif fault == "hangs":
        receiving.hold = True
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    lost: list[int] = []
    tracer = Tracer("capstone", "local", lost=lost.append)

    with caplog.at_level(logging.WARNING):
        for number in range(3):
            tracer.record(Span("work", CONTEXT.child(str(number)), CONTEXT, 1, 2))
            wait_for("the loss to be counted", lambda: len(lost) > number, 20)  # noqa: B023

    assert sum(lost) == 3
    (warning,) = [record for record in caplog.records if record.name == "capstone.traces"]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in warning.getMessage()
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_recording_does_not_wait_for_a_collector_that_hangs(receiving: Collector) -> None:
    receiving.hold = True
    tracer = Tracer("capstone", "local")

    def record() -> None:
        for number in range(100):
            tracer.record(Span("work", CONTEXT.child(str(number)), CONTEXT, 1, 2))

    recording = threading.Thread(target=record, daemon=True)
    recording.start()
    recording.join(scaled(30))

    assert not recording.is_alive()  # the collector holds each request for a minute


def test_a_process_does_not_stay_for_a_collector_that_hangs(receiving: Collector) -> None:
    """Thousands of spans are many batches; one of them is waited for, not all."""
    receiving.hold = True
    program = """
from capstone_dagster.traces.context import upload_context
from capstone_dagster.traces.tracer import Span, Tracer
tracer = Tracer("capstone", "local")
for number in range(4000):
    context = upload_context("0123456789abcdef" * 4).child(str(number))
    tracer.record(Span("work", context, None, 1, 2))
"""

    done = subprocess.run([sys.executable, "-c", program], timeout=scaled(60))

    assert done.returncode == 0
    assert receiving.requests <= 2


@pytest.mark.parametrize("address", ["nonsense", "http://", "ftp://127.0.0.1/x", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_costs_the_spans(
    receiving: Collector, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setattr(tracer_module, "_EXPORT_INTERVAL_MS", 100)
    lost: list[int] = []
    tracer = Tracer("capstone", "local", lost=lost.append)

    tracer.record(Span("work", CONTEXT, None, 1, 2))

    wait_for("the loss to be counted", lambda: sum(lost) == 1, 20)
