"""Logs of what Dagster records outside of runs: each record becomes one line, whoever could see it."""

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.definitions.reconstruct import reconstructable
from dagster._core.events import DagsterEvent
from dagster._core.scheduler.instigation import InstigatorType, TickData, TickStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._utils.error import serializable_error_info_from_exc_info
from sqlalchemy.engine import make_url

from capstone_dagster.logs import forwarding
from capstone_dagster.logs.forwarding import (
    Position,
    beginning,
    forward,
    run_events_forwarder,
)
from capstone_dagster.logs.redaction import Redaction
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.errors import DatabaseUnavailable
from tests.support.lines import Lines, of_runs, python_logs
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
TAGS = {
    "capstone/video_id": "gate-0a1b2c3d",
    "capstone/external_id": "84",
    "capstone/upload_id": "9f" * 32,
    "capstone/s3_uri": "s3://capstone-raw/gate/a.mp4",
    "capstone/traceparent": f"00-{'c' * 32}-{'d' * 16}-01",
}


@dg.op
def work(context: dg.OpExecutionContext) -> None:
    context.log.info("At work.")
    logging.getLogger("capstone.storage").warning("Tried again.", extra={"action": "database.retry"})


@dg.job
def working() -> None:
    work()


@dataclass
class Office:
    """A Dagster instance on PostgreSQL, with the log handlers of ours, and the sensor over it."""

    instance: dg.DagsterInstance
    storage: str
    position: Position | None = None

    def tick(self) -> str:
        """One of the sensor's ticks, with the position that the last one left."""
        self.position = self.position or beginning(self.instance)
        told = forward(self.instance, self.position, of_runs, Redaction(), budget_s=forwarding._BUDGET_S)
        self.position = Position.read(self.position.write())
        return told

    def written(self) -> list[dict[str, Any]]:
        """Every line, of the runs' handlers and of the sensor."""
        return of_runs.fields()

    def run(self, status: dg.DagsterRunStatus = dg.DagsterRunStatus.NOT_STARTED) -> dg.DagsterRun:
        return self.instance.create_run_for_job(
            working, status=status, tags=TAGS, job_code_origin=reconstructable(working).get_python_origin()
        )


@pytest.fixture
def office(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    storage = make_url(database_url).set(drivername="postgresql+psycopg2").render_as_string(False)
    shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    launcher = {"module": "tests.support.failing_launcher", "class": "FailingLauncher"}
    (tmp_path / "dagster.yaml").write_text(
        yaml.safe_dump(
            {
                "storage": {"postgres": {"postgres_url": storage}},
                "python_logs": python_logs(),
                "run_monitoring": shipped["run_monitoring"],
                "run_launcher": launcher,
            }
        )
    )
    monkeypatch.syspath_prepend(str(ROOT))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield Office(instance, storage)


def test_each_record_of_a_run_becomes_one_line_of_the_logs(office: Office) -> None:
    result = working.execute_in_process(instance=office.instance, tags=TAGS)
    run = office.instance.get_run_by_id(result.run_id)
    assert run is not None
    office.instance.report_engine_event("Told from outside.", run)
    office.instance.report_run_canceling(run)

    office.tick()
    office.tick()

    records = office.instance.event_log_storage.get_logs_for_all_runs_by_log_id()
    told = Counter(line["message"] for line in office.written())
    assert told == Counter(entry.message for entry in records.values())
    assert max(told.values()) == 1
    for line in office.written():
        assert {name: line[name] for name in ("run_id", "video_id", "external_id", "bucket", "key")} == {
            "run_id": result.run_id,
            "video_id": "gate-0a1b2c3d",
            "external_id": "84",
            "bucket": "capstone-raw",
            "key": "gate/a.mp4",
        }
        assert (line["upload_id"], line["trace_id"]) == ("9f" * 32, "c" * 32)


def test_a_launcher_error_is_in_the_logs_with_its_run_and_without_its_secrets(office: Office) -> None:
    run = office.run()
    with WorkspaceProcessContext(office.instance, None) as context, pytest.raises(RuntimeError):
        office.instance.launch_run(run.run_id, context.create_request_context())

    office.tick()

    lines = {line["action"]: line for line in office.written()}
    assert list(lines) == ["run.starting", "run.engine", "run.failed"]
    assert lines["run.engine"]["level"] == "ERROR"
    assert "no queue of that name" in lines["run.engine"]["message"]
    assert "launch_run" in lines["run.engine"]["exception"]
    assert "hidden-password" not in json.dumps(office.written())
    failed = lines["run.failed"]
    assert (failed["run_id"], failed["video_id"], failed["level"]) == (run.run_id, "gate-0a1b2c3d", "ERROR")
    assert failed["failure_class"] == "container-start"
    assert failed["remedy"].endswith(".")


def test_a_lost_worker_that_run_monitoring_found_is_in_the_logs(office: Office) -> None:
    run = office.run(dg.DagsterRunStatus.STARTING)
    office.instance.report_dagster_event(DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    with WorkspaceProcessContext(office.instance, None) as context:
        list(execute_run_monitoring_iteration(context, logging.getLogger("monitoring")))
    fresh = office.instance.get_run_by_id(run.run_id)
    assert fresh is not None
    assert fresh.status == dg.DagsterRunStatus.FAILURE

    office.tick()

    [failed] = [line for line in office.written() if line["action"] == "run.failed"]
    assert "killed by signal 9" in failed["message"]
    assert (failed["run_id"], failed["failure_class"]) == (run.run_id, "worker-lost")
    assert 0 <= failed["elapsed_s"] < 60


def test_a_stop_is_caught_up_with_in_bounded_ticks(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    run = office.run()
    office.tick()
    for number in range(35):
        office.instance.report_engine_event(f"Event {number}.", run)
    monkeypatch.setattr(forwarding, "_EVENTS_AT_ONCE", 10)
    monkeypatch.setattr(forwarding, "_BUDGET_S", 0.0)
    # What is read has settled by then, as after a stop.
    monkeypatch.setattr(forwarding, "_OVERLAP_S", 0.0)

    counts = []
    for _ in range(5):
        before = len(office.written())
        office.tick()
        counts.append(len(office.written()) - before)

    assert counts == [10, 10, 10, 5, 0]
    told = [line["message"] for line in office.written() if line["message"].startswith("Event ")]
    assert told == [f"Event {number}." for number in range(35)]


def test_a_record_that_was_committed_late_is_not_passed_over(office: Office) -> None:
    run = office.run()
    office.instance.report_engine_event("First.", run)
    admin = make_url(office.storage).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(admin) as slow:
        slow.execute(
            "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp) "
            "SELECT run_id, replace(event, 'First.', 'Late.'), dagster_event_type, timestamp FROM event_logs "
            "WHERE event LIKE '%First.%'"
        )
        office.instance.report_engine_event("Second.", run)
        office.tick()
        assert [line["message"] for line in office.written()] == ["First.", "Second."]
        slow.commit()

    office.tick()

    assert [line["message"] for line in office.written()] == ["First.", "Second.", "Late."]


def test_a_position_in_the_logs_outlives_a_version_that_was_rolled_back() -> None:
    kept = {**json.loads(Position(7, 8, [9], {10: 1.5}).write()), "of_a_later_version": 1}

    assert Position.read(json.dumps(kept)) == Position(7, 8, [9], {10: 1.5})


def test_what_standard_output_does_not_take_waits(office: Office) -> None:
    run = office.run()
    position = beginning(office.instance)
    for number in range(5):
        office.instance.report_engine_event(f"Event {number}.", run)
    output = Lines(room=3)

    told = forward(office.instance, position, output, Redaction())
    assert told == "3 events and 0 ticks forwarded. Standard output takes no more: the rest waits."
    position = Position.read(position.write())
    output.room = 100
    forward(office.instance, position, output, Redaction())

    assert [line["message"] for line in output.fields()] == [f"Event {number}." for number in range(5)]


@contextmanager
def ticking(office: Office, sensor: str) -> Iterator[Any]:
    """A tick that has begun; it is given its end by `update_tick`."""
    yield office.instance.create_tick(
        TickData(
            instigator_origin_id=f"origin-{sensor}",
            instigator_name=sensor,
            instigator_type=InstigatorType.SENSOR,
            status=TickStatus.STARTED,
            timestamp=time.time() - 1.5,
            selector_id=f"selector-{sensor}",
        )
    )


def test_ticks_are_in_the_logs_once_they_have_ended(office: Office) -> None:
    office.tick()
    with ticking(office, "upload_sensor") as slow, ticking(office, "video_status_sensor") as failing:
        try:
            raise DatabaseUnavailable("The event store does not answer.")
        except DatabaseUnavailable:
            error = serializable_error_info_from_exc_info(sys.exc_info())
        office.instance.update_tick(failing.with_status(TickStatus.FAILURE, error=error))
        office.tick()
        assert [line["sensor"] for line in office.written()] == ["video_status_sensor"]
        asked = slow.with_run_info("run-1", "key-1").with_run_info("run-2", "key-2")
        office.instance.update_tick(asked.with_status(TickStatus.SUCCESS))

    office.tick()
    office.tick()

    failed, went_well = office.written()
    assert (failed["action"], failed["level"], failed["status"]) == ("sensor.ticked", "ERROR", "failure")
    assert failed["failure_class"] == "database-unavailable"
    assert "does not answer" in failed["message"]
    assert (went_well["level"], went_well["status"], went_well["runs"]) == ("INFO", "success", 2)
    assert went_well["run_ids"] == ["run-1", "run-2"]
    assert 1.5 <= went_well["elapsed_s"] < 60


def test_ticks_behind_a_gap_of_deleted_ones_are_found(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "_TICKS_AT_ONCE", 3)
    office.tick()
    admin = make_url(office.storage).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(admin) as connection:
        connection.execute("SELECT setval('job_ticks_id_seq', 40)")
    with ticking(office, "alerts") as tick:
        office.instance.update_tick(tick.with_status(TickStatus.SUCCESS))
    state = SimpleNamespace(selector_id="selector-alerts")
    monkeypatch.setattr(type(office.instance), "all_instigator_state", lambda self, *a, **k: [state])

    # How wide a gap one tick comes over is a matter of its time.
    [line] = wait_for("the tick behind the gap", lambda: office.tick() and office.written())
    assert (line["message"], line["level"]) == ("alerts: 0 runs asked for.", "INFO")


def test_the_sensor_says_what_it_forwarded_and_nothing_where_lines_are_text(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick() -> Any:
        services = SimpleNamespace(settings=read_settings())
        context = dg.build_sensor_context(instance=office.instance, resources={"services": services})
        return run_events_forwarder.evaluate_tick(context)

    assert tick().skip_message == "0 events and 0 ticks forwarded."
    assert Position.read(tick().cursor)
    monkeypatch.setenv("CAPSTONE_LOG_FORMAT", "text")
    assert tick().skip_message == "Log lines are text, for people: nothing is forwarded."


def test_a_raw_video_s_line_names_the_video(office: Office) -> None:
    office.instance.report_runless_asset_event(
        dg.AssetMaterialization("raw_videos", partition="gate-0a1b2c3d", metadata={"upload_id": "9f" * 32})
    )

    office.tick()

    [line] = office.written()
    assert (line["action"], line["asset"]) == ("asset.materialized", "raw_videos")
    assert (line["video_id"], line["upload_id"]) == ("gate-0a1b2c3d", "9f" * 32)
    assert "run_id" not in line
