"""What steps print goes to standard output without helper processes; what sensors log is kept in S3."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.storage.compute_log_manager import ComputeIOType

from capstone_dagster.logs.compute_logs import TickLogsInS3
from tests.conftest import Aws


@dg.op
def say() -> int:
    print("printed by a step")
    return len(psutil.Process().children())


@dg.job
def saying() -> None:
    say()


@pytest.fixture
def instance(aws: Aws, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    logs = {
        "module": "capstone_dagster.logs.compute_logs",
        "class": "TickLogsInS3",
        "config": {
            "bucket": aws.resources.raw_bucket,
            "prefix": "compute-logs",
            "local_dir": str(tmp_path / "local"),
        },
    }
    with dg.instance_for_test(overrides={"compute_logs": logs}) as instance:
        yield instance


def manager(instance: dg.DagsterInstance) -> TickLogsInS3:
    found = instance.compute_log_manager
    assert isinstance(found, TickLogsInS3)
    return found


def test_a_step_prints_to_its_own_process_and_starts_no_other(
    instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    before = len(psutil.Process().children())

    result = saying.execute_in_process(instance=instance)

    assert result.output_for_node("say") == before
    assert "printed by a step" in capfd.readouterr().out
    [captured] = [
        event.logs_captured_data
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.LOGS_CAPTURED
    ]
    key = [result.run_id, "compute_logs", captured.file_key]
    shown = manager(instance).get_log_data(key)
    assert b"standard output of the run's process" in (shown.stdout or b"")
    assert manager(instance).is_capture_complete(key)
    assert manager(instance).get_log_data(key, shown.cursor).stdout is None


def test_what_a_sensor_logs_is_read_back_from_s3(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    key = ["repository", "sensor", "1700000000"]
    with manager(instance).open_log_stream(key, ComputeIOType.STDERR) as stream:
        assert stream is not None
        stream.write("logged in a tick")

    assert not any((tmp_path / "local").rglob("*.err"))
    assert manager(instance).get_log_data(key).stderr == b"logged in a tick"
