"""Logs of what Dagster records about a run outside of its worker: each record becomes one line."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.reconstruct import reconstructable
from dagster._core.events import DagsterEvent
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from sqlalchemy.engine import make_url

from capstone_dagster.logs.run_records import write_run_records
from capstone_dagster.settings import read_settings
from tests.support.ended_runs import judge
from tests.support.lines import Lines, of_runs, python_logs

ROOT = Path(__file__).resolve().parents[2]
TAGS = {
    ".dagster/capstone.video_id": "gate-0a1b2c3d",
    "capstone/external_id": "84",
    ".dagster/capstone.upload_id": "9f" * 32,
    ".dagster/capstone.s3_uri": "s3://capstone-raw/gate/a.mp4",
    ".dagster/capstone.traceparent": f"00-{'c' * 32}-{'d' * 16}-01",
}


@dg.op
def work(context: dg.OpExecutionContext) -> None:
    context.log.info("At work.")
    logging.getLogger("capstone.storage").warning("Tried again.", extra={"action": "database.retry"})


@dg.job
def working() -> None:
    work()


@pytest.fixture
def instance(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """On PostgreSQL, with our log handlers, run monitoring, and a launcher that fails."""
    storage = make_url(database_url).set(drivername="postgresql+psycopg2").render_as_string(False)
    config = {
        "storage": {"postgres": {"postgres_url": storage}},
        "python_logs": python_logs(),
        "run_monitoring": yaml.safe_load((ROOT / "dagster.yaml").read_text())["run_monitoring"],
        "run_launcher": {"module": "tests.support.failing_launcher", "class": "FailingLauncher"},
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.syspath_prepend(str(ROOT))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def begin(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus = dg.DagsterRunStatus.NOT_STARTED
) -> dg.DagsterRun:
    origin = reconstructable(working).get_python_origin()
    return instance.create_run_for_job(working, status=status, tags=TAGS, job_code_origin=origin)


def written(
    instance: dg.DagsterInstance, run_id: str, output: Lines = of_runs, **settings: Any
) -> list[dict[str, Any]]:
    """All lines of an ended run, those of its own handlers included."""
    write_run_records(instance, read_settings(**settings), [judge(instance, run_id)], output)
    return output.fields()


def test_each_record_of_a_run_becomes_one_line_of_the_logs(instance: dg.DagsterInstance) -> None:
    run_id = working.execute_in_process(instance=instance, tags=TAGS).run_id
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_engine_event("Its machine was stopped.", run)

    lines = written(instance, run_id)

    records = instance.event_log_storage.get_logs_for_all_runs_by_log_id().values()
    messages = Counter(line["message"] for line in lines)
    assert messages == Counter(entry.message for entry in records)
    assert max(messages.values()) == 1
    for line in lines:
        assert {name: line[name] for name in ("run_id", "video_id", "external_id", "bucket", "key")} == {
            "run_id": run_id,
            "video_id": "gate-0a1b2c3d",
            "external_id": "84",
            "bucket": "capstone-raw",
            "key": "gate/a.mp4",
        }
        assert (line["upload_id"], line["trace_id"]) == ("9f" * 32, "c" * 32)


def test_a_launcher_error_is_in_the_logs_with_its_run_and_without_its_secrets(
    instance: dg.DagsterInstance,
) -> None:
    run = begin(instance)
    with WorkspaceProcessContext(instance, None) as context, pytest.raises(RuntimeError):
        instance.launch_run(run.run_id, context.create_request_context())

    lines = {line["action"]: line for line in written(instance, run.run_id)}

    assert list(lines) == ["run.starting", "run.engine", "run.failed"]
    assert lines["run.engine"]["level"] == "ERROR"
    assert "no queue of that name" in lines["run.engine"]["message"]
    assert "launch_run" in lines["run.engine"]["exception"]
    assert "hidden-password" not in json.dumps(lines)
    failed = lines["run.failed"]
    assert (failed["run_id"], failed["video_id"], failed["level"]) == (run.run_id, "gate-0a1b2c3d", "ERROR")
    assert failed["failure_class"] == "container-start"
    assert failed["remedy"].endswith(".")


def test_a_lost_worker_that_run_monitoring_found_is_in_the_logs(instance: dg.DagsterInstance) -> None:
    run = begin(instance, dg.DagsterRunStatus.STARTING)
    instance.report_dagster_event(DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    with WorkspaceProcessContext(instance, None) as context:
        list(execute_run_monitoring_iteration(context, logging.getLogger("monitoring")))

    [failed] = [line for line in written(instance, run.run_id) if line["action"] == "run.failed"]

    assert "killed by signal 9" in failed["message"]
    assert (failed["run_id"], failed["failure_class"]) == (run.run_id, "worker-lost")
    assert 0 <= failed["elapsed_s"] < 60


def test_a_run_whose_lines_standard_output_does_not_take_is_given_again(instance: dg.DagsterInstance) -> None:
    run = begin(instance)
    for number in range(5):
        instance.report_engine_event(f"Event {number}.", run)
    instance.report_run_canceled(run)
    output = Lines(room=3)

    with pytest.raises(BlockingIOError):
        written(instance, run.run_id, output)
    output.room = 100

    messages = [line["message"] for line in written(instance, run.run_id, output)]
    assert messages[3:8] == [f"Event {number}." for number in range(5)]


def test_no_record_is_written_to_logs_that_are_text(instance: dg.DagsterInstance) -> None:
    run = begin(instance)
    instance.report_run_canceled(run)

    assert written(instance, run.run_id, log_format="text") == []
