"""Metrics that an onlooker publishes: of runs that say nothing themselves, of queues, pauses and ticks."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent
from dagster._core.scheduler.instigation import TickStatus
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from capstone_dagster.catalog import metrics as declared
from capstone_dagster.catalog.model import Metric
from capstone_dagster.definitions import defs
from capstone_dagster.failures.breaker_state import BREAKER, BreakerState, Phase
from capstone_dagster.failures.cursors import from_json, to_json
from capstone_dagster.intake.queue import UploadQueue
from capstone_dagster.metrics.vital_signs import Cursor, observe, vital_signs_sensor
from capstone_dagster.metrics.waiting_messages import Queues
from capstone_dagster.run_tags import VIDEO_SECONDS_TAG
from capstone_dagster.settings import Settings, read_settings
from tests.conftest import Aws
from tests.support.dagster_home import dagster_home
from tests.support.published import Published
from tests.support.sensors import record_tick

EMPTY = dg.JobDefinition(name="analyze_upload", graph_def=dg.GraphDefinition(name="empty"))
NOWHERE = "http://127.0.0.1:1/000000000000/no-such-queue"


class Onlooker:
    """The sensor's observation, at times of the test's choice."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path, **settings: Any) -> None:
        self.instance = instance
        self.published = Published(folder / "standard-output")
        self.settings: Settings = read_settings(**settings)
        self.metrics = self.published.metrics(self.settings)
        self.started = time.time() - 1
        self.cursor = to_json(Cursor(since=self.started))
        self.unseen: list[str] = []

    def look(self, *, after_s: float = 10.0, queue: str | None = None) -> None:
        """Observe, so long after the test began, with what the last observation left."""
        now = self.started + after_s
        cursor = from_json(Cursor, self.cursor)
        queues = None if queue is None else Queues(queue)
        self.unseen = observe(self.instance, self.settings, self.metrics, cursor, queues, now=now)
        self.cursor = to_json(cursor)

    def values(self, metric: Metric, **dimensions: str) -> list[float]:
        return self.published.values(metric, **dimensions)

    def run(self, status: dg.DagsterRunStatus, tags: dict[str, str] | None = None) -> dg.DagsterRun:
        return self.instance.create_run_for_job(EMPTY, status=status, tags=tags)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        yield instance


@pytest.fixture
def onlooker(instance: dg.DagsterInstance, tmp_path: Path) -> Onlooker:
    return Onlooker(instance, tmp_path)


@dg.op
def fine() -> None:
    pass


def execute(onlooker: Onlooker, *ops: dg.OpDefinition) -> None:
    """One run of each."""
    for op in ops:
        job = dg.GraphDefinition(name=f"runs_{op.name}", node_defs=[op]).to_job()
        job.execute_in_process(instance=onlooker.instance, raise_on_error=False)


def test_metrics_outlive_a_version_that_was_rolled_back(onlooker: Onlooker) -> None:
    onlooker.look()
    onlooker.cursor = json.dumps({**json.loads(onlooker.cursor), "of_a_later_version": 1})
    onlooker.look(after_s=20)
    assert onlooker.unseen == []


def test_metrics_of_no_runs_are_zeros(onlooker: Onlooker) -> None:
    onlooker.look()
    assert onlooker.unseen == []
    zeros = (
        declared.RUNS_QUEUED,
        declared.LONGEST_RUN_OVER_LIMIT,
        declared.SECONDS_WITHOUT_SUCCESS,
        declared.INTAKE_PAUSED,
    )
    for metric in zeros:
        assert onlooker.values(metric) == [0], metric.name


@pytest.mark.parametrize(
    ("video_s", "age_s", "ratio"),
    [
        (None, 900, 0.5),  # 30 minutes, as long as nothing is known of the video
        ("60", 3600, 2.0),
        ("7200", 3600, 0.25),  # twice the video's length
        ("7200", 21600, 1.5),
        ("none", 900, 0.5),
    ],
)
def test_metrics_see_a_hung_run(onlooker: Onlooker, video_s: str | None, age_s: float, ratio: float) -> None:
    run = onlooker.run(dg.DagsterRunStatus.STARTING, {} if video_s is None else {VIDEO_SECONDS_TAG: video_s})
    start = DagsterEvent(dg.DagsterEventType.RUN_START.value, job_name=run.job_name)
    onlooker.instance.report_dagster_event(start, run.run_id)
    onlooker.run(dg.DagsterRunStatus.STARTING)
    onlooker.look(after_s=age_s + 1)
    assert onlooker.values(declared.LONGEST_RUN_OVER_LIMIT) == [pytest.approx(ratio, rel=0.01)]


def test_metrics_say_for_how_long_nothing_succeeded(
    onlooker: Onlooker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = declared.SECONDS_WITHOUT_SUCCESS
    onlooker.look(after_s=1000)
    assert onlooker.values(seconds)[-1] == 0  # there was nothing to do
    onlooker.run(dg.DagsterRunStatus.NOT_STARTED)
    onlooker.look(after_s=1200)
    onlooker.look(after_s=1900)
    assert onlooker.values(seconds)[-1] == 0  # nobody has submitted it
    stuck = onlooker.run(dg.DagsterRunStatus.STARTED)
    onlooker.look(after_s=2000)
    assert onlooker.values(seconds)[-1] == 0  # nobody has waited yet
    onlooker.look(after_s=5600)
    assert onlooker.values(seconds)[-1] == 3600
    onlooker.look(after_s=6000)
    assert onlooker.values(seconds)[-1] == 4000
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: onlooker.started + 5000)
        execute(onlooker, fine)
    onlooker.look(after_s=6000)
    assert onlooker.values(seconds)[-1] == pytest.approx(1000, abs=5)
    onlooker.instance.report_run_canceled(stuck)
    onlooker.look(after_s=7000)
    assert onlooker.values(seconds)[-1] == 0


def test_metrics_of_queues(onlooker: Onlooker, aws: Aws) -> None:
    sqs, queue = aws.client("sqs"), aws.resources.queue_url
    sqs.purge_queue(QueueUrl=queue)
    onlooker.look(queue=queue)
    assert onlooker.values(declared.DEAD_LETTERS) == [0]
    assert onlooker.values(declared.SECONDS_WITHOUT_SUCCESS) == [0]

    UploadQueue(sqs, queue).reject("what?", "no JSON", "m1")
    sqs.send_message(QueueUrl=queue, MessageBody="{}")
    onlooker.look(after_s=20, queue=queue)
    sqs.receive_message(QueueUrl=queue)  # somebody has it, and has not acknowledged it
    onlooker.look(after_s=80, queue=queue)
    assert onlooker.values(declared.DEAD_LETTERS) == [0, 1, 1]
    assert onlooker.values(declared.SECONDS_WITHOUT_SUCCESS) == [0, 0, 60]
    # What SQS does not answer is taken for unchanged, and everything else is published.
    onlooker.look(after_s=100, queue=NOWHERE)
    assert onlooker.unseen == ["queues"]
    assert onlooker.values(declared.DEAD_LETTERS) == [0, 1, 1]
    assert onlooker.values(declared.SECONDS_WITHOUT_SUCCESS)[-1] == 80
    assert len(onlooker.values(declared.INTAKE_PAUSED)) == 4


def test_metrics_say_why_intake_pauses(onlooker: Onlooker) -> None:
    onlooker.look()
    for cause in ("database-unavailable", "duplicate-job", "operator"):
        BREAKER.write(onlooker.instance, BreakerState(Phase.OPEN, cause=cause))
        onlooker.look()
        assert onlooker.values(declared.INTAKE_PAUSED, FailureClass=cause) == [1]
    BREAKER.write(onlooker.instance, BreakerState(Phase.CLOSED, cause="operator"))
    onlooker.look()
    assert onlooker.values(declared.INTAKE_PAUSED) == [0, 1, 1, 1, 0]


def test_metrics_of_sensors_ticks(onlooker: Onlooker, caplog: pytest.LogCaptureFixture) -> None:
    name, error = "upload_sensor", SerializableErrorInfo("It failed.", [], None)
    record_tick(onlooker.instance, name, TickStatus.SKIPPED, seconds=0.5)
    record_tick(onlooker.instance, name, TickStatus.FAILURE, seconds=2.0, error=error)
    running = record_tick(onlooker.instance, name, TickStatus.STARTED)
    onlooker.look()
    duration, errors = declared.SENSOR_TICK_DURATION, declared.SENSOR_TICK_ERRORS
    assert sorted(onlooker.values(duration, Sensor="upload_sensor")) == pytest.approx([0.5, 2.0])
    assert sum(onlooker.values(errors, Sensor="upload_sensor")) == 1
    assert "A tick of upload_sensor failed: It failed." in caplog.messages
    ended = running.with_status(TickStatus.SUCCESS)
    onlooker.instance.update_tick(ended)
    onlooker.look(after_s=25)
    onlooker.look(after_s=40)
    took = ended.end_timestamp - ended.timestamp
    assert onlooker.values(duration)[2:] == pytest.approx([took])


def test_metrics_of_one_source_do_not_hold_up_the_others(
    onlooker: Onlooker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: Any, **named: Any) -> Any:
        raise OSError("storage hiccup")

    with monkeypatch.context() as patch:
        patch.setattr(onlooker.instance, "get_runs_count", fails)
        onlooker.look()
    assert onlooker.unseen == ["work"]
    assert onlooker.values(declared.RUNS_QUEUED) == []
    assert onlooker.values(declared.INTAKE_PAUSED) == [0]
    assert "storage hiccup" in caplog.text


def test_metrics_are_published_by_the_sensor_while_event_store_and_queue_are_away(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-west-1")
    onlooker = Onlooker(instance, tmp_path, queue_url=NOWHERE, postgres_host="127.0.0.1", postgres_port=1)

    def tick(cursor: str | None) -> Any:
        return vital_signs_sensor.evaluate_tick(
            dg.build_sensor_context(
                instance=instance, cursor=cursor, resources={"services": onlooker}, definitions=defs
            )
        )

    first = tick(None)
    second = tick(first.cursor)
    assert "queues" in str(second.skip_message)
    assert onlooker.values(declared.RUNS_QUEUED) == [0, 0]


@pytest.mark.parametrize(("age_s", "beats"), [(20.0, [1]), (400.0, [])])
def test_metrics_have_a_heartbeat_while_every_loop_of_the_daemon_works(
    onlooker: Onlooker, age_s: float, beats: list[float]
) -> None:
    loops = sorted(onlooker.instance.get_required_daemon_types())
    at = onlooker.started + 10.0
    for name in loops:
        onlooker.instance.add_daemon_heartbeat(DaemonHeartbeat(at, name, "id", []))
    onlooker.instance.add_daemon_heartbeat(DaemonHeartbeat(at - age_s, loops[-1], "id", []))

    onlooker.look(after_s=10.0)

    assert onlooker.values(declared.HEARTBEAT, Service="daemon") == beats


def test_metrics_have_no_heartbeat_of_a_daemon_that_has_never_run(onlooker: Onlooker) -> None:
    onlooker.look()

    assert onlooker.values(declared.HEARTBEAT) == []
