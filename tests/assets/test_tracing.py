"""A video is one trace, whoever works on it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from capstone_dagster.traces.context import upload_context
from capstone_dagster.traces.runs import record_runs
from tests.assets.conftest import Pipeline
from tests.traces.collector import Collector, collector

# Spans are the same with every emulator.
pytestmark = pytest.mark.parametrize("aws_endpoint", ["ministack"], indirect=True)


@pytest.fixture
def receiving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    with collector() as served:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", served.endpoint)
        yield served


@pytest.mark.parametrize("configured", [True, False], ids=["by the sensor", "in the UI"])
def test_a_run_is_one_trace_from_its_steps_to_the_database(
    pipeline: Pipeline, clip: Path, receiving: Collector, configured: bool
) -> None:
    upload = pipeline.upload("gate/walk.mp4", clip.read_bytes())

    assert pipeline.run(upload, configured=configured).success
    runs = pipeline.instance.get_run_records()
    assert record_runs(pipeline.instance, pipeline.services.tracer, runs) == 1
    pipeline.services.tracer.flush()

    trace = upload_context(upload.upload_id)
    assert {span.trace_id.hex() for span in receiving.spans} == {trace.trace_id}
    run = next(span for span in receiving.spans if span.name.startswith("run "))
    assert run.parent_span_id.hex() == trace.span_id
    ids = {span.span_id: span.name for span in receiving.spans}
    parents = {span.name: ids[span.parent_span_id] for span in receiving.spans if span is not run}
    assert {name: parents[name] for name in parents if parents[name] != run.name} == {
        "load the model": "analyze_video",
        "download": "analyze_video",
        "decode, detect, track": "analyze_video",
        "store the results": "analyze_video",
        "publish": "persist_events",
    }
    assert {"analyze_video", "derive_events", "persist_events"} <= {
        name for name in parents if parents[name] == run.name
    }
    for span in receiving.spans:
        if span is not run:
            assert run.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano


def test_a_failed_step_is_an_error_with_its_class(pipeline: Pipeline, receiving: Collector) -> None:
    upload = pipeline.upload("gate/broken.mp4", b"no video at all")

    assert not pipeline.run(upload).success
    record_runs(pipeline.instance, pipeline.services.tracer, pipeline.instance.get_run_records())
    pipeline.services.tracer.flush()

    run = next(span for span in receiving.spans if span.name.startswith("run "))
    assert run.status.message == "undecodable-video"
    assert receiving.named("analyze_video").status.code == 2
    assert "Undecodable" in receiving.named("decode, detect, track").status.message
