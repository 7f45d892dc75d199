"""The verdict on an ended run, from its own events, its tags and what the launcher left."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, EngineEventData, RunFailureReason
from dagster._core.test_utils import create_run_for_test
from dagster._utils.error import serializable_error_info_from_exc_info

from batch_gpu.jobs import CANCELLED_TAG
from capstone_dagster.assets.failing import as_failure
from capstone_dagster.failures import ended_runs
from capstone_dagster.failures.cursors import from_json, to_json
from capstone_dagster.failures.ended_runs import Position
from capstone_dagster.failures.verdicts import Cause, Outcome, Verdict
from capstone_dagster.run_tags import DETECTION_TAG, STORED_TAG
from capstone_dagster.storage.errors import DatabaseUnavailable
from tests.support.ended_runs import judge

LOST = RunFailureReason.UNEXPECTED_TERMINATION
UPLOAD = {".dagster/capstone.upload_id": "u1"}
BY_LAUNCHER = {"batch_gpu/failure": "timeout", ".dagster/batch_gpu.cause": "Its time was up."}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@dg.op
def away() -> None:
    raise as_failure(DatabaseUnavailable("The event store does not answer."))


@dg.op
def broken() -> None:
    raise KeyError("a defect")


def ended(instance: dg.DagsterInstance, op: dg.OpDefinition) -> Verdict:
    job = dg.GraphDefinition(name=f"runs_{op.name}", node_defs=[op]).to_job()
    run = job.execute_in_process(instance=instance, raise_on_error=False)
    return judge(instance, run.run_id)


def test_a_step_says_its_class_and_cause(instance: dg.DagsterInstance) -> None:
    verdict = ended(instance, away)
    assert verdict.outcome == Outcome.FAILED
    assert verdict.cause == Cause("database-unavailable", "The event store does not answer.")  # type: ignore[arg-type]
    assert ended(instance, broken).cause == Cause("internal", "KeyError: 'a defect'")  # type: ignore[arg-type]


def failed(
    instance: dg.DagsterInstance, reason: RunFailureReason = LOST, begun: bool = True, **tags: str
) -> Verdict:
    """The verdict on a run that ended without a step's word."""
    run = create_run_for_test(instance, job_name="analyze_upload", tags=UPLOAD | tags)
    if begun:
        instance.report_dagster_event(DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    event = DagsterEvent.job_failure(run.job_name, "Dagster's words.", failure_reason=reason)
    instance.report_dagster_event(event, run.run_id)
    return judge(instance, run.run_id)


@pytest.mark.parametrize(
    ("tags", "reason", "failure", "cause"),
    [
        ({}, LOST, "worker-lost", "Its worker received a stop signal."),
        (BY_LAUNCHER, LOST, "timeout", "Its time was up."),
        (
            {"batch_gpu/failure": "container-start"},
            LOST,
            "container-start",
            "Its worker received a stop signal.",
        ),
        ({}, RunFailureReason.START_TIMEOUT, "capacity", "Its worker did not begin the run in time."),
        ({}, RunFailureReason.JOB_INITIALIZATION_FAILURE, "internal", "The run could not be prepared."),
        # What a parent's job left, and what anyone may have written.
        ({"batch_gpu/failure": "none"}, LOST, "worker-lost", "Its worker received a stop signal."),
        ({"batch_gpu/failure": "no-such-class"}, LOST, "internal", "Its worker received a stop signal."),
    ],
)
def test_a_run_that_says_nothing_has_the_launchers_class_or_dagsters(
    instance: dg.DagsterInstance, tags: dict[str, str], reason: RunFailureReason, failure: str, cause: str
) -> None:
    assert failed(instance, reason, **tags).cause == Cause(failure, cause)  # type: ignore[arg-type]


def test_a_run_that_was_never_launched_says_why(instance: dg.DagsterInstance) -> None:
    run = create_run_for_test(instance, tags=UPLOAD)
    try:
        raise ImportError("no name 'x'")
    except ImportError:
        error = EngineEventData.engine_error(serializable_error_info_from_exc_info(sys.exc_info()))
    instance.report_engine_event("The run was not launched", run, error)
    instance.report_run_failed(run)

    text = "The run was not launched: ImportError: no name 'x'"
    assert judge(instance, run.run_id).cause == Cause("container-start", text)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["by its event", "by the operator's tag"])
def test_a_run_that_is_cancelled_before_it_begins_has_not_failed(
    instance: dg.DagsterInstance, how: str
) -> None:
    """Dagster reports its end as a failure."""
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTING, tags=UPLOAD)
    if how == "by its event":
        instance.report_run_canceling(run)
    else:
        instance.add_run_tags(run.run_id, {CANCELLED_TAG: run.run_id})
    instance.report_run_failed(run)

    verdict = judge(instance, run.run_id)
    assert (verdict.outcome, verdict.cause) == (Outcome.CANCELED, None)


@pytest.mark.parametrize(
    ("job", "tags", "outlook"),
    [
        ("analyze_upload", UPLOAD, "It is tried again now."),
        # Of other runs a lost worker is replaced, and nothing else.
        ("daily_activity", {}, "It is tried again now."),
        ("preview_video", {"batch_gpu/failure": "timeout"},
         "Runs of preview_video are not started again by the system."),
        ("analyze_upload", UPLOAD | {"batch_gpu/failure": "permission-denied"},
         "It is not tried again, unless intake pauses for it and resumes."),
    ],
)  # fmt: skip
def test_a_verdict_promises_only_what_is_done(
    instance: dg.DagsterInstance, job: str, tags: dict[str, str], outlook: str
) -> None:
    run = create_run_for_test(instance, job_name=job, tags=tags)
    instance.report_run_failed(run)
    assert judge(instance, run.run_id).outlook == outlook


@pytest.mark.parametrize(
    ("tags", "wasted"),
    [
        ({}, True),
        ({DETECTION_TAG: "d", STORED_TAG: "d"}, False),  # publishing failed: the next run uses them
        ({DETECTION_TAG: "d", STORED_TAG: "other"}, True),
    ],
)
def test_what_a_failed_pass_cost_is_wasted_unless_its_detections_are_stored(
    instance: dg.DagsterInstance, tags: dict[str, str], wasted: bool
) -> None:
    run = create_run_for_test(instance, job_name="analyze_upload", tags=UPLOAD | tags)
    instance.report_dagster_event(DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    step = DagsterEvent("STEP_START", run.job_name, step_key="video_analysis.analyze_video")
    instance.report_dagster_event(step, run.run_id)
    time.sleep(0.01)  # the pass whose cost is asked for: it takes time, and nothing is waited for
    instance.report_run_failed(run)

    verdict = judge(instance, run.run_id)
    assert 0 < verdict.gpu_s < 60
    assert verdict.wasted_s == (verdict.gpu_s if wasted else 0)


class Ended:
    """What the reader gives out, at times of the test's choice."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.now = time.time()
        self.position = Position.beginning(instance, self.now)

    def read(self, after_s: float = 0.0, ready: Any = lambda run, age_s: True) -> list[str]:
        now = self.now + after_s
        ended_runs.read(self.instance, self.position, now=now)
        found = ended_runs.take_ready(self.instance, self.position, now=now, is_ready=ready)
        for record in found:
            ended_runs.done(self.position, record.dagster_run.run_id)
        self.position = from_json(Position, to_json(self.position))
        return [record.dagster_run.run_id for record in found]

    def end(self, status: str = "PIPELINE_SUCCESS") -> str:
        run = create_run_for_test(self.instance)
        self.instance.report_dagster_event(DagsterEvent(status, run.job_name), run.run_id)
        return run.run_id


def test_each_end_is_read_once_whatever_is_written_late(instance: dg.DagsterInstance) -> None:
    reader = Ended(instance)
    ids = {reader.end(status) for status in ("PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED")}
    assert set(reader.read()) == ids
    for after_s in (10, 61, 62, 200):
        assert reader.read(after_s) == []
    assert not reader.position.recent
    later = reader.end()
    assert reader.read(300) == [later]


def test_an_end_whose_status_has_not_followed_yet_is_left_for_later(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster stores the event first: whoever takes its absence for an answer misses the run for good."""
    reader = Ended(instance)
    with monkeypatch.context() as patched:
        patched.setattr(instance.run_storage, "handle_run_event", lambda *_, **__: None)
        run_id = reader.end("PIPELINE_FAILURE")
    assert reader.read(100) == []
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_run_failed(run)
    assert reader.read(200) == [run_id]


def test_an_end_that_is_not_explained_yet_waits_without_holding_up_others(
    instance: dg.DagsterInstance,
) -> None:
    reader = Ended(instance)
    waits, other = reader.end("PIPELINE_FAILURE"), reader.end()
    assert reader.read(ready=lambda run, _: run.run_id != waits) == [other]
    assert reader.read(1000) == [waits]
