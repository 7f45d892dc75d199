"""Notices of ended runs and troubles, over real SNS and SQS of both emulators and Dagster's own records."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent
from dagster._core.execution.plan.objects import StepFailureData, UserFailureData
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.test_utils import create_run_for_test
from dagster._utils.error import serializable_error_info_from_exc_info

from capstone_dagster import reactions
from capstone_dagster.alerts import alerting, troubles
from capstone_dagster.alerts.inbox import Received, look_into
from capstone_dagster.alerts.incidents import CALM_S
from capstone_dagster.assets import failing
from capstone_dagster.assets.failing import explained
from capstone_dagster.catalog.metrics import NOTICES_FAILED, NOTICES_SENT
from capstone_dagster.commands import channels
from capstone_dagster.failures import ended_runs
from capstone_dagster.failures.breaker_state import BREAKER, BreakerState, Phase
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.left_messages import LEFT_MESSAGES, LeftMessages
from capstone_dagster.failures.step_retries import note_retry, retry_of
from capstone_dagster.intake.queue import UploadQueue
from capstone_dagster.services import Services
from capstone_dagster.settings import Settings, read_settings
from capstone_dagster.storage.errors import DatabaseUnavailable, StorageUnavailable
from tests.conftest import Aws
from tests.support.dagster_home import dagster_home
from tests.support.ended_runs import Reader
from tests.support.sensors import record_sensor, record_tick

NOWHERE = "http://127.0.0.1:9"
NOTHING = dg.Definitions().get_repository_def()


@dataclass
class Office:
    """The sensor with its cursor, a clock that can be put forward, and the inbox of an operator."""

    aws: Aws
    instance: dg.DagsterInstance
    services: Services
    clock: Callable[[float], None]
    counted: list[tuple[str, float]] = field(default_factory=list)
    cursor: str | None = None

    def tick(self) -> str:
        """One tick; its account."""
        reader = Reader(self.instance, self.services, NOTHING, self.cursor)
        account = reader.tick()
        self.cursor = reader.cursor
        return account

    def inbox(self) -> list[Received]:
        return look_into(self.aws.client("sqs"), self.aws.resources.alert_inbox_url)

    def fails(
        self, failure: str = "model-unavailable", cause: str = "The file is gone.", **tags: str
    ) -> dg.DagsterRun:
        run = create_run_for_test(
            self.instance,
            job_name="analyze_upload",
            status=dg.DagsterRunStatus.STARTED,
            tags={".dagster/capstone.video_id": "gate-1a2b3c4d", **tags},
        )
        metadata = {"failure_class": dg.MetadataValue.text(failure), "cause": dg.MetadataValue.text(cause)}
        data = StepFailureData(error=None, user_failure_data=UserFailureData("failure", cause, metadata))
        event = DagsterEvent("STEP_FAILURE", run.job_name, step_key="s", event_specific_data=data)
        self.instance.report_dagster_event(event, run.run_id)
        self.instance.report_run_failed(run)
        return run

    def succeeds(self, video: str = "gate-1a2b3c4d") -> None:
        run = create_run_for_test(
            self.instance, job_name="analyze_upload", tags={".dagster/capstone.video_id": video}
        )
        for event in ("PIPELINE_START", "PIPELINE_SUCCESS"):
            self.instance.report_dagster_event(DagsterEvent(event, run.job_name), run.run_id)


@pytest.fixture
def office(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    ahead = [0.0]
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + ahead[0])

    def put_forward(seconds: float) -> None:
        ahead[0] += seconds

    # Alerts alone: there is no event store, and nothing is started again.
    monkeypatch.setattr(reactions.video_status, "reconcile", lambda *_: "")
    monkeypatch.setattr(reactions.reexecution.RetryTick, "decide", lambda _: "")
    monkeypatch.setattr(alerting, "LOOK_INTERVAL_S", 0.0)
    services = Services(settings_for(aws))
    with dg.DagsterInstance.ephemeral() as instance:
        office = Office(aws, instance, services, put_forward)
        monkeypatch.setattr(
            services.metrics, "add", lambda metric, value=1, **_: office.counted.append((metric.name, value))
        )
        yield office


@pytest.fixture
def with_ticks(office: Office, tmp_path: Path) -> Iterator[None]:
    """An instance with files behind it: one that is only in memory keeps no ticks."""
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        office.instance = instance
        yield


def settings_for(aws: Aws, **more: Any) -> Settings:
    return read_settings(
        alert_topic_arn=aws.resources.alert_topic_arn, queue_url=aws.resources.queue_url, **more
    )


def test_an_alert_says_everything_that_whoever_is_on_call_needs(office: Office) -> None:
    office.services = Services(settings_for(office.aws, ui_url="http://dagster.example/"))
    run = office.fails(
        "storage-unavailable",
        "S3 does not answer for s3://raw/a.mp4. Password=hunter22secret was used.",
        **{"capstone/external_id": "84", "batch_gpu/job_id": "job-7", ".dagster/capstone.upload_id": "u1"},
    )

    office.tick()

    [notice] = office.inbox()
    assert notice.subject == "[local] FAILED storage-unavailable: S3 does not answer"
    assert notice.subject.isascii()
    for part in (
        "Cause: S3 does not answer for s3://raw/a.mp4.",
        "Class: storage-unavailable",
        "Video: gate-1a2b3c4d (external id 84)",
        "Attempt: 1. It is tried again at ",
        "What to do: Check S3",
        f"Run: http://dagster.example/runs/{run.run_id}",
        "Job: job-7",
        "Logs: capstone logs gate-1a2b3c4d",
        "Runbook: docs/runbook.md#storage-unavailable",
    ):
        assert part in notice.body
    assert "hunter22secret" not in notice.body + str(office.cursor)
    assert {name: notice.attributes[name] for name in ("kind", "class", "severity", "environment")} == {
        "kind": "failure",
        "class": "storage-unavailable",
        "severity": "page",
        "environment": "local",
    }


def test_alerts_do_not_need_the_store_of_the_ticks_own_log(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in S3, which may be what hangs: each tick would be cut off, and tell the same again."""
    used = property(lambda _: pytest.fail("the tick's own log is used"))
    monkeypatch.setattr(dg.SensorEvaluationContext, "log", used)
    office.fails()

    assert "1 notices sent." in office.tick()


def test_alerts_that_sns_did_not_take_arrive_when_it_is_back(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", NOWHERE)
    office.fails("model-unavailable")
    assert "1 kept to be sent again: SNS cannot be reached" in office.tick()
    office.clock(10)
    office.fails("undecodable-video")
    office.fails("model-unavailable")
    assert "2 kept to be sent again" in office.tick()
    office.clock(10)
    assert "2 kept to be sent again" in office.tick()
    assert office.inbox() == []
    assert office.counted.count((NOTICES_FAILED.name, 1)) >= 2

    monkeypatch.delenv("AWS_ENDPOINT_URL_SNS")
    office.clock(60)
    assert "0 runs ended. 2 notices sent." in office.tick()

    assert [notice.attributes["class"] for notice in office.inbox()] == [
        "model-unavailable",
        "undecodable-video",
    ]
    assert (NOTICES_SENT.name, 2) in office.counted


def test_an_outage_of_days_stops_no_alerts(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", NOWHERE)
    office.fails()
    office.tick()
    cursor = json.loads(str(office.cursor))
    cursor["alerts"]["sns"]["times"] = 5000
    cursor["alerts"]["record"]["incidents"][0]["relapse"] = 5000
    office.cursor = json.dumps(cursor)
    office.clock(60)

    assert "1 kept to be sent again" in office.tick()
    office.clock(60)
    monkeypatch.delenv("AWS_ENDPOINT_URL_SNS")
    assert "1 notices sent" in office.tick()


def test_no_alert_is_lost_when_a_tick_is_cut_off_or_raises(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.tick()
    office.fails("gpu-error")

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("Dagster's storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(ended_runs, "read", broken)
        with pytest.raises(ConnectionError):
            office.tick()
    # As after a restart of the daemon: nothing is remembered but the cursor.
    assert "1 notices sent" in office.tick()
    assert "No notice is due" in office.tick()


def test_no_alert_is_lost_while_the_daemon_was_away(office: Office) -> None:
    office.fails("gpu-error")  # before the sensor ever ticked
    assert "1 notices sent" in office.tick()
    office.fails("undecodable-video")
    office.clock(12 * 3600)
    assert "1 notices sent" in office.tick()


def test_an_alert_is_followed_by_one_of_its_end(office: Office) -> None:
    office.fails()
    office.tick()
    office.clock(CALM_S + 5)
    office.succeeds("another-video")
    office.tick()

    [_, over] = office.inbox()
    assert over.subject.startswith("[local] OVER model-unavailable")
    assert over.attributes["kind"] == "recovery"
    assert re.search(r"It lasted \d+ s, from \S+ \S+\+09:00 to \S+ \S+\+09:00\.", over.body)
    assert "1 run has failed because of it." in over.body


def test_what_is_decided_of_a_run_and_its_place_are_in_the_alert(office: Office) -> None:
    upload = {".dagster/capstone.upload_id": "u1"}
    first = office.fails("worker-lost", "Its worker was lost.", **upload)
    office.fails("internal", "It broke.", **upload, **{"dagster/root_run_id": first.run_id})
    tried = {
        ".dagster/capstone.reexecution": "3",
        ".dagster/capstone.reexecution_of": "p",
        "dagster/parent_run_id": "p",
    }
    office.fails("timeout", "Its time was up.", **upload, **tried)
    office.fails("model-unavailable", **upload)
    office.fails("gpu-error", "Nobody starts it again.")  # somebody's own run
    office.tick()

    bodies = {notice.attributes["class"]: notice.body for notice in office.inbox()}
    for failure, sentence in {
        "worker-lost": "Attempt: 1. It is tried again now.",
        "internal": "Attempt: 2. It is not tried again.",
        "timeout": "Attempt: 1. It is not tried again: CAPSTONE_REEXECUTIONS_PER_VIDEO (3) is used up.",
        "model-unavailable": "Attempt: 1. It is not tried again, unless intake pauses for it and resumes.",
        "gpu-error": "Attempt: 1. Runs of analyze_upload are not started again by the system.",
    }.items():
        assert sentence in bodies[failure]


def test_a_worker_that_was_told_to_stop_is_waited_for_to_be_explained(office: Office) -> None:
    """Its launcher's sensor finds out within seconds that it was the time limit."""
    office.tick()
    run = create_run_for_test(
        office.instance,
        status=dg.DagsterRunStatus.STARTED,
        tags={
            "dagster/failure_reason": "UNEXPECTED_TERMINATION",
            "batch_gpu/job_id": "job-1",
        },
    )
    office.instance.report_run_failed(run)
    assert "0 runs ended. No notice is due." in office.tick()
    office.instance.add_run_tags(run.run_id, {"batch_gpu/failure": "timeout"})
    office.tick()
    assert [notice.attributes["class"] for notice in office.inbox()] == ["timeout"]


def test_no_alert_is_lost_that_waited_for_its_explanation_while_the_daemon_was_away(office: Office) -> None:
    office.tick()
    interrupted = {"dagster/failure_reason": "UNEXPECTED_TERMINATION", "batch_gpu/job_id": "job-1"}
    run = create_run_for_test(office.instance, status=dg.DagsterRunStatus.STARTED, tags=interrupted)
    office.instance.report_run_failed(run)
    office.fails("undecodable-video")
    office.tick()
    assert [notice.attributes["class"] for notice in office.inbox()] == ["undecodable-video"]

    office.instance.add_run_tags(run.run_id, {"batch_gpu/failure": "timeout"})
    office.clock(10 * ended_runs.OVERLAP_S)
    office.tick()
    office.tick()

    assert {notice.attributes["class"] for notice in office.inbox()} == {"undecodable-video", "timeout"}


def test_a_class_that_nobody_knows_stops_no_alerts(office: Office) -> None:
    office.fails("no-such-class", "Whatever.", **{".dagster/capstone.reexecution": "many"})
    office.fails("undecodable-video")
    office.tick()

    assert {notice.attributes["class"] for notice in office.inbox()} == {"internal", "undecodable-video"}


def failed_tick(office: Office, sensor: str, error: Exception | None) -> None:
    """A tick that failed as Dagster records it, within an error of its own; None: one that went well."""
    recorded = None
    if error is not None:
        try:
            raise RuntimeError("Error occurred during the execution of evaluation_fn") from error
        except RuntimeError:
            recorded = serializable_error_info_from_exc_info(sys.exc_info())
    status = TickStatus.FAILURE if recorded else TickStatus.SKIPPED
    record_tick(office.instance, sensor, status, error=recorded)


@pytest.mark.usefixtures("with_ticks")
def test_an_event_store_that_is_away_is_an_alert_although_no_run_fails(office: Office) -> None:
    """Intake only looks at it: its ticks fail, and nothing else."""
    office.services = Services(
        settings_for(office.aws, database_url="postgresql+psycopg://nobody@127.0.0.1:1/nowhere")
    )
    away = DatabaseUnavailable("The event store does not answer. Is PostgreSQL running?")
    failed_tick(office, "upload_sensor", away)
    office.tick()
    assert office.inbox() == []  # one failed tick is no incident
    failed_tick(office, "upload_sensor", away)
    failed_tick(office, "outbox_sensor", away)
    failed_tick(office, "outbox_sensor", away)
    office.tick()

    [notice] = office.inbox()
    assert notice.attributes["class"] == "database-unavailable"
    assert "Cause: The event store does not answer." in notice.body
    assert "Concerned: sensor upload_sensor, sensor outbox_sensor." in notice.body

    for sensor in ("upload_sensor", "outbox_sensor"):
        failed_tick(office, sensor, None)
    office.tick()
    office.clock(CALM_S)
    office.tick()
    assert [notice.attributes["kind"] for notice in office.inbox()] == ["failure", "recovery"]


@pytest.mark.usefixtures("with_ticks")
def test_a_sensor_with_a_defect_is_an_alert(office: Office) -> None:
    for _ in range(2):
        failed_tick(office, "batch_gpu_runs", KeyError("jobs"))
    office.tick()

    [notice] = office.inbox()
    assert notice.attributes["page"] == "sensor-failing"
    assert "KeyError: 'jobs'" in notice.body
    assert "sensor batch_gpu_runs" in notice.body


def test_dead_letters_are_an_alert_until_they_are_gone(office: Office) -> None:
    queue = UploadQueue(office.aws.client("sqs"), office.aws.resources.queue_url)
    queue.reject("{", "no JSON", "m1")
    office.tick()
    [notice] = office.inbox()
    assert notice.attributes["page"] == "dead-letters"
    assert notice.subject == "[local] FAILED dead-letters: Messages are in the dead-letter queue"
    assert "1 message was given up" in notice.body

    queue.dead_letters()  # somebody looks at them: hidden for the moment, and not gone
    office.clock(60)
    office.tick()
    assert len(office.inbox()) == 1

    office.aws.client("sqs").purge_queue(QueueUrl=queue.dead_letter_url)
    office.clock(60)
    office.tick()
    assert [notice.attributes["kind"] for notice in office.inbox()] == ["failure", "recovery"]


def test_intake_that_pauses_itself_is_one_alert_and_its_end_another(office: Office) -> None:
    reason = "The last 5 runs failed for model-unavailable."
    BREAKER.write(
        office.instance,
        BreakerState(Phase.OPEN, since=time.time(), cause="model-unavailable", reason=reason),
    )
    office.tick()
    office.tick()
    [notice] = office.inbox()
    assert notice.attributes["page"] == "intake-paused"
    assert reason in notice.body

    BREAKER.write(office.instance, BreakerState())
    office.clock(CALM_S + 5)
    office.tick()
    assert [notice.attributes["kind"] for notice in office.inbox()] == ["failure", "recovery"]


def test_uploads_that_may_not_be_looked_up_are_an_alert(office: Office) -> None:
    """No run and no tick fails of it: the messages stay in the queue and come again."""
    reason = "S3 forbids HeadObject on s3://raw/a.mp4. Grant s3:GetObject."
    LEFT_MESSAGES.write(office.instance, LeftMessages(3, FailureClass.SOURCE_FORBIDDEN, reason, time.time()))
    office.tick()
    [notice] = office.inbox()
    assert notice.attributes["class"] == "source-forbidden"
    assert "Cause: S3 forbids HeadObject on s3://raw/a.mp4." in notice.body
    assert "Concerned: lookup of uploads (3)." in notice.body

    office.clock(180)
    LEFT_MESSAGES.write(office.instance, LeftMessages(1, FailureClass.SOURCE_FORBIDDEN, reason, time.time()))
    office.tick()
    assert {notice.attributes["kind"] for notice in office.inbox()} == {"failure"}
    office.clock(300)
    office.tick()
    assert [notice.attributes["kind"] for notice in office.inbox()] == ["failure", "recovery"]


def test_alerts_know_what_a_step_is_tried_again_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "RETRY", dg.RetryPolicy(max_retries=2, delay=0))
    seen = []

    @dg.op
    def stores(context: dg.OpExecutionContext) -> None:
        seen.append(troubles.retrying_runs(context.instance, now=time.time() + 60))
        with explained(context, Services(read_settings())):
            if context.retry_number < 2:
                raise StorageUnavailable("S3 failed. Try it.") from OSError("cut")

    @dg.job
    def a_job() -> None:
        stores()

    with dg.DagsterInstance.ephemeral() as instance:
        result = a_job.execute_in_process(instance=instance, raise_on_error=False)
        assert result.success
        run = instance.get_run_by_id(result.run_id)

    assert run is not None
    assert retry_of(run.run_id, run.tags) is None, "it went well after all"
    first, second, third = seen
    assert first == []
    for [trouble] in (second, third):
        assert (trouble.failure, trouble.cause) == ("storage-unavailable", "S3 failed. Try it.")


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_step_that_is_tried_again_for_long_is_an_alert(office: Office, ends_well: bool) -> None:
    """An hour's video fails for good only when its pass was repeated twice."""
    run = create_run_for_test(
        office.instance, job_name="analyze_upload", tags={".dagster/capstone.video_id": "gate-1a2b3c4d"}
    )
    office.instance.report_dagster_event(DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    reason = "S3 failed PutObject on s3://derived/a. It said SlowDown."
    note_retry(office.instance, run.run_id, None, FailureClass.STORAGE_UNAVAILABLE, reason)
    office.tick()
    assert office.inbox() == []  # it may pass at once
    office.clock(11)
    office.tick()

    [notice] = office.inbox()
    assert notice.attributes["class"] == "storage-unavailable"
    for part in ("Cause: S3 failed PutObject on s3://derived/a.", "tried again within its run", run.run_id):
        assert part in notice.body

    office.clock(90)
    event = DagsterEvent("PIPELINE_SUCCESS" if ends_well else "PIPELINE_FAILURE", run.job_name)
    office.instance.report_dagster_event(event, run.run_id)
    office.tick()
    office.clock(CALM_S)
    office.tick()
    kinds = [notice.attributes["kind"] for notice in office.inbox()]
    if ends_well:
        assert kinds == ["failure", "recovery"]
    else:
        assert "recovery" not in kinds


def test_runs_that_wait_long_for_a_machine_are_an_alert(office: Office) -> None:
    run = create_run_for_test(office.instance, tags={".dagster/batch_gpu.status": "RUNNABLE: no capacity"})
    office.instance.report_dagster_event(DagsterEvent("PIPELINE_STARTING", run.job_name), run.run_id)
    office.tick()
    assert office.inbox() == []
    office.clock(troubles.WAITS_LONG_S + 1)
    office.tick()

    [notice] = office.inbox()
    assert notice.attributes["page"] == "waiting-for-capacity"
    assert "RUNNABLE: no capacity" in notice.body


def test_a_run_that_hangs_is_an_alert(office: Office) -> None:
    run = create_run_for_test(office.instance, tags={".dagster/capstone.video_id": "gate-1a2b3c4d"})
    office.instance.report_dagster_event(DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    office.clock(29 * 60)
    office.tick()
    assert office.inbox() == []
    office.clock(120)
    office.tick()

    [notice] = office.inbox()
    assert notice.attributes["page"] == "long-running"
    assert f"The run {run.run_id} of gate-1a2b3c4d has been running for 31 min." in notice.body


def test_without_a_topic_nobody_gets_alerts_and_the_tick_says_so(office: Office) -> None:
    office.services = Services(read_settings())
    office.fails()
    assert "CAPSTONE_ALERT_TOPIC_ARN is not set" in office.tick()

    office.services = Services(settings_for(office.aws))
    assert "1 notices sent" in office.tick()


@pytest.mark.usefixtures("with_ticks")
def test_the_doctor_tells_how_sending_alerts_goes(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "/somewhere")
    monkeypatch.setattr(dg.DagsterInstance, "get", lambda: nullcontext(office.instance))
    with pytest.raises(channels.Wrong, match="has not run yet"):
        channels.notices()

    office.fails()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", NOWHERE)
    office.tick()
    record_sensor(office.instance, "ended_runs", office.cursor, time.time())
    with pytest.raises(channels.Wrong, match="1 notices have been kept for 0 s: SNS cannot be reached"):
        channels.notices()

    monkeypatch.delenv("AWS_ENDPOINT_URL_SNS")
    office.clock(10)
    office.tick()
    record_sensor(office.instance, "ended_runs", office.cursor, time.time())
    assert channels.notices() == "all sent; 1 incidents are open"

    office.clock(600)
    with pytest.raises(channels.Wrong, match=r"last ran 6\d\d s ago"):
        channels.notices()
