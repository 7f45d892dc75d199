"""The circuit breaker at work in the upload sensor, over real SQS, S3, PostgreSQL and Dagster's records."""

import time
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.failures.breaker_state import BREAKER, DUPLICATE_JOB, OFFERS, BreakerState, Phase
from capstone_dagster.intake.orders import give_order
from capstone_dagster.run_tags import DUPLICATE_TAG, FAILURE_TAG, PROBE_TAG
from capstone_dagster.services import Services
from tests.intake.conftest import Intake
from tests.support.ended_runs import judge
from tests.support.waiting import wait_for

NOWHERE = {"database_url": None, "postgres_host": "127.0.0.1", "postgres_port": 1}


@pytest.fixture
def quick(intake: Intake) -> Intake:
    """Intake that pauses after two failures."""
    intake.services = Services(intake.services.settings.model_copy(update={"pause_after_failures": 2}))
    return intake


def runs(intake: Intake) -> list[dg.DagsterRun]:
    """All runs, oldest first."""
    return list(reversed(intake.instance.get_runs()))


def fail(intake: Intake, run: dg.DagsterRun, failure: str) -> None:
    """Fail a run as its op and, right afterwards, Dagster do; it is judged at once."""
    intake.instance.add_run_tags(run.run_id, {FAILURE_TAG: failure})
    intake.instance.report_run_failed(run)
    judge(intake.instance, run.run_id)


def succeed(intake: Intake, run: dg.DagsterRun) -> None:
    event = dg.DagsterEvent(dg.DagsterEventType.PIPELINE_SUCCESS.value, run.job_name)
    intake.instance.report_dagster_event(event, run_id=run.run_id)
    judge(intake.instance, run.run_id)


def uploaded(intake: Intake, number: int) -> list[dg.DagsterRun]:
    """So many uploads whose runs are on record and whose messages are gone."""
    for each in range(number):
        intake.upload(f"gate/{each}.mp4", body=str(each).encode())
    intake.ticks_until("their runs", lambda: len(intake.requests) == number and not read_pending(intake))
    return runs(intake)


def read_pending(intake: Intake) -> bool:
    return intake.cursor not in (None, "[]")


def paused_by(intake: Intake, failure: str = "model-unavailable") -> BreakerState:
    for run in uploaded(intake, 2):
        fail(intake, run, failure)
    intake.tick()
    return BREAKER.read(intake.instance)


def make_due(intake: Intake) -> None:
    BREAKER.write(intake.instance, replace(BREAKER.read(intake.instance), next_probe_at=time.time()))


def test_intake_pauses_says_so_and_leaves_messages_in_the_queue(quick: Intake) -> None:
    state = paused_by(quick)
    assert (state.phase, state.cause) == (Phase.OPEN, "model-unavailable")

    quick.upload("gate/new.mp4")
    quick.ticks_until("the new message", lambda: quick.messages() == 1)
    result = quick.tick()

    reason = str(result.skip_reason)
    assert "Intake is paused since" in reason
    assert "model-unavailable" in reason
    assert "The next probe is due at" in reason
    assert len(quick.requests) == 2
    received = quick.aws.client("sqs").receive_message(
        QueueUrl=quick.aws.resources.queue_url,
        VisibilityTimeout=0,
        MessageSystemAttributeNames=["ApproximateReceiveCount"],
    )
    [message] = received["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1", "no delivery was wasted"


def test_while_paused_what_is_on_record_is_acknowledged(quick: Intake) -> None:
    failed = uploaded(quick, 2)
    quick.upload("gate/late.mp4", b"late")
    quick.ticks_until("its run", lambda: len(quick.requests) == 3)
    assert read_pending(quick)
    for run in failed:
        fail(quick, run, "permission-denied")

    result = quick.tick()

    assert "Intake is paused" in str(result.skip_reason)
    assert "1 acknowledged" in str(result.skip_reason)
    assert quick.messages() == 0


def test_one_probe_goes_through_before_all_others_and_its_success_resumes(quick: Intake) -> None:
    paused_by(quick)
    for number in range(3):
        quick.upload(f"gate/more-{number}.mp4", str(number).encode())
    make_due(quick)

    quick.ticks_until("the probe", lambda: len(quick.requests) == 3)
    probe = quick.requests[-1]
    assert (probe.tags[PROBE_TAG], int(probe.tags["dagster/priority"]) > 1000) == ("true", True)
    for _ in range(3):
        quick.tick()
    assert len(quick.requests) == 3, "one probe and no more"
    assert "A probe, an upload, is out" in str(quick.tick().skip_reason)
    assert quick.messages() == 2, "the probe's own message is acknowledged, the others wait"

    succeed(quick, runs(quick)[-1])
    quick.ticks_until("all others", lambda: len(quick.requests) == 5 and quick.messages() == 0)
    assert not any(PROBE_TAG in request.tags for request in quick.requests[3:])
    state = BREAKER.read(quick.instance)
    assert (state.phase, state.cause, state.probes) == (Phase.CLOSED, "model-unavailable", 1)


def test_a_probe_that_fails_doubles_the_wait(quick: Intake) -> None:
    first = paused_by(quick)
    quick.upload("gate/more.mp4")
    make_due(quick)
    quick.ticks_until("the probe", lambda: len(quick.requests) == 3)

    fail(quick, runs(quick)[-1], "model-unavailable")
    quick.tick()

    state = BREAKER.read(quick.instance)
    assert (state.phase, state.since) == (Phase.OPEN, first.since)
    assert state.next_probe_at > time.time() + 100


def test_a_probe_whose_tick_died_is_not_followed_by_a_second_one(quick: Intake) -> None:
    paused_by(quick)
    quick.redeliver_after_a_second()
    quick.upload("gate/more.mp4")
    make_due(quick)

    def died() -> bool:
        return bool(quick.tick(create_runs=False).run_requests)

    wait_for("a doomed tick", died)
    for _ in range(3):
        assert not quick.tick().run_requests
    state = BREAKER.read(quick.instance)
    assert state.probe is not None
    lost = replace(state.probe, released_at=state.probe.released_at - 300)
    BREAKER.write(quick.instance, replace(state, probe=lost))

    quick.ticks_until("the probe after all", lambda: len(quick.requests) == 3)
    assert BREAKER.read(quick.instance).phase is Phase.HALF_OPEN


def test_of_a_message_with_several_uploads_one_is_the_probe(quick: Intake) -> None:
    paused_by(quick)
    # A bucket that sends no notifications of its own.
    update = {"source_buckets": ("capstone-raw", "capstone-derived")}
    quick.services = Services(quick.services.settings.model_copy(update=update))
    s3 = quick.aws.client("s3")
    records = []
    for key in ("x.mp4", "y.mp4"):
        s3.put_object(Bucket="capstone-derived", Key=key, Body=key.encode())
        record: dict[str, Any] = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}
        record["s3"] = {"bucket": {"name": "capstone-derived"}, "object": {"key": key}}
        records.append(record)
    quick.redeliver_after_a_second()
    quick.send({"Records": records})
    make_due(quick)

    quick.ticks_until("the probe", lambda: len(quick.requests) == 3)
    succeed(quick, runs(quick)[-1])

    quick.ticks_until("the other", lambda: len(quick.requests) == 4 and quick.messages() == 0)


def test_what_failed_is_a_cheaper_probe_than_a_new_upload(quick: Intake) -> None:
    paused_by(quick, "database-unavailable")
    failed = runs(quick)[-1]
    quick.upload("gate/more.mp4")
    OFFERS.write(
        quick.instance, {"of another class": "storage-unavailable", failed.run_id: "database-unavailable"}
    )
    assert len(OFFERS.read(quick.instance)) == 2
    make_due(quick)

    quick.tick()

    state = BREAKER.read(quick.instance)
    assert state.probe is not None
    assert (state.phase, state.probe.reexecutes) == (Phase.HALF_OPEN, failed.run_id)
    assert len(quick.requests) == 2

    child = quick.instance.create_run_for_job(
        _again, tags={**failed.tags, "dagster/parent_run_id": failed.run_id}
    )
    quick.tick()
    assert BREAKER.read(quick.instance).phase is Phase.HALF_OPEN
    succeed(quick, child)
    quick.ticks_until("the upload", lambda: len(quick.requests) == 3)


@dg.job(name="analyze_upload")
def _again() -> None:
    pass


def test_a_database_that_is_away_pauses_intake_without_failing_ticks_and_is_noticed_when_back(
    quick: Intake,
) -> None:
    failed = uploaded(quick, 2)
    quick.upload("gate/late.mp4", b"late")
    quick.ticks_until("its run", lambda: len(quick.requests) == 3)
    pending = quick.cursor
    there, away = quick.services, Services(quick.services.settings.model_copy(update=NOWHERE))
    for run in failed:
        fail(quick, run, "database-unavailable")

    quick.services = away
    for _ in range(3):
        assert "Intake is paused" in str(quick.tick().skip_reason)
    assert quick.cursor == pending, "what cannot be said to be queued is not acknowledged"
    state = BREAKER.read(quick.instance)
    assert state.next_probe_at > time.time() + 50

    quick.services = there
    quick.upload("gate/probe.mp4", b"probe")
    quick.ticks_until("the probe, at once", lambda: len(quick.requests) == 4)
    assert quick.requests[-1].tags[PROBE_TAG] == "true"


def test_work_done_twice_pauses_intake(quick: Intake) -> None:
    [run] = uploaded(quick, 1)
    quick.instance.add_run_tags(run.run_id, {DUPLICATE_TAG: run.run_id})

    quick.tick()

    state = BREAKER.read(quick.instance)
    assert (state.cause, state.paused) == (DUPLICATE_JOB, True)
    assert run.run_id in state.reason


def test_an_operators_orders_go_before_the_breakers_own(quick: Intake) -> None:
    paused_by(quick)
    give_order(quick.instance, "resume", by="lee", why="mended")
    quick.upload("gate/more.mp4")
    quick.ticks_until("its run", lambda: len(quick.requests) == 3)

    give_order(quick.instance, "pause", by="kim", why="the model is changed")
    quick.ticks_until("the pause", lambda: BREAKER.read(quick.instance).paused)
    quick.upload("gate/still-more.mp4")
    reason = str(quick.tick().skip_reason)
    assert "kim: the model is changed" in reason
    assert "capstone intake resume" in reason
    assert len(quick.requests) == 3
