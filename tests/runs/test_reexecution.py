"""Which failed runs are started again, when, how often, and what their uploads' status says of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from hypothesis import given
from hypothesis import strategies as st

from batch_gpu.jobs import CANCELLED_TAG, RECLAIMED_TAG
from capstone_dagster.assets.declared.backfills import request_backfill
from capstone_dagster.assets.declared.videos import analyze_upload, events, raw_videos, video_analysis
from capstone_dagster.failures.breaker_state import (
    BREAKER,
    DUPLICATE_JOB,
    OFFERS,
    OPERATOR,
    BreakerState,
    Phase,
    Probe,
)
from capstone_dagster.failures.classes import POLICIES, SYSTEMIC, FailureClass
from capstone_dagster.failures.requests import attempts, request_run_id
from capstone_dagster.failures.retry_policy import (
    DELAYS_S,
    Budget,
    Decision,
    FailedRun,
    Leave,
    Start,
    Wait,
    delay_s,
    judge,
)
from capstone_dagster.run_tags import FAILURE_TAG, PROBE_TAG
from capstone_dagster.runs.lineage import Resumption, reexecution_id
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.video_status import (
    current_status,
    mark_cancelled,
    mark_failed,
    mark_running,
    mark_superseded,
)
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import UPLOAD, dump, notices
from tests.support.dagster_home import dagster_home
from tests.support.ended_runs import Reader

DATABASE, MODEL, WORKER = (
    FailureClass.DATABASE_UNAVAILABLE,
    FailureClass.MODEL_UNAVAILABLE,
    FailureClass.WORKER_LOST,
)
CLOSED = BreakerState()
BUDGET = Budget(per_video=3, per_hour=2)
FAILED = FailedRun("r", "u", DATABASE, ended_at=1000.0, attempts=0)


def paused_for(cause: str, probe: Probe | None = None) -> BreakerState:
    phase = Phase.OPEN if probe is None else Phase.HALF_OPEN
    return BreakerState(phase, since=1001.0, cause=cause, probe=probe)


@pytest.mark.parametrize(("attempt", "delay_s"), [(0, 30), (1, 120), (2, 600), (5, 600)])
def test_the_delay_grows_with_each_attempt(attempt: int, delay_s: float) -> None:
    failed, budget = replace(FAILED, attempts=attempt), replace(BUDGET, per_video=9)
    waits = judge(failed, CLOSED, budget, 1000 + delay_s - 0.1)
    assert isinstance(waits, Wait)
    assert waits.until == 1000 + delay_s
    assert f"(attempt {attempt + 1} of 9)" in waits.outlook
    assert judge(failed, CLOSED, budget, 1000 + delay_s) == Start()


def kind(
    failed: FailedRun, breaker: BreakerState = CLOSED, budget: Budget = BUDGET, now: float = 9999.0
) -> str:
    return type(judge(failed, breaker, budget, now)).__name__


@pytest.mark.parametrize("failure", sorted(FailureClass))
def test_only_what_passes_by_itself_is_started_again_unless_it_was_mended(failure: FailureClass) -> None:
    failed = replace(FAILED, failure=failure)
    assert kind(failed) == ("Start" if POLICIES[failure].transient else "Leave")
    # Intake may still pause for it; until that is known, it is not settled.
    soon = kind(failed, now=1010.0)
    if failure == WORKER:  # its machine is gone: there is nothing to wait for
        assert soon == "Start"
    else:
        assert soon == ("Wait" if POLICIES[failure].transient or failure in SYSTEMIC else "Leave")
    assert kind(failed, paused_for(failure)) == "Wait"
    mended = BreakerState(since=2000.0, cause=failure)
    assert kind(failed, mended, now=2000.0) == "Start"
    later = replace(failed, ended_at=2001.0)
    assert (kind(later, mended, now=2002.0) == "Start") == (failure == WORKER)


def test_while_intake_is_paused_for_it_only_the_probe_goes() -> None:
    offered = judge(FAILED, paused_for(DATABASE), BUDGET, 9999.0)
    assert isinstance(offered, Wait)
    assert offered.offered
    assert "once database-unavailable is over" in offered.outlook
    other = paused_for(DATABASE, Probe(1.0, reexecutes="another"))
    assert kind(FAILED, other) == "Wait"
    own = paused_for(DATABASE, Probe(1.0, reexecutes="r"))
    assert judge(FAILED, own, BUDGET, 1001.0) == Start(probe=True)


@pytest.mark.parametrize("cause", [OPERATOR, DUPLICATE_JOB])
def test_a_pause_for_no_class_holds_everything(cause: str) -> None:
    waits = judge(FAILED, paused_for(cause), BUDGET, 9999.0)
    assert isinstance(waits, Wait)
    assert not waits.offered


def test_a_pause_for_another_class_holds_nothing() -> None:
    assert kind(FAILED, paused_for(MODEL)) == "Start"


def test_a_videos_budget_ends() -> None:
    verdict = judge(replace(FAILED, attempts=3), CLOSED, BUDGET, 9999.0)
    assert isinstance(verdict, Leave)
    assert verdict.refused
    assert "CAPSTONE_REEXECUTIONS_PER_VIDEO (3)" in verdict.outlook


@pytest.mark.parametrize(
    ("failure", "more", "reason"),
    [
        ("worker-lost", {}, None),
        ("worker-lost", {"before": ("timeout",)}, None),
        ("worker-lost", {"before": ("timeout", "worker-lost")}, "its worker died twice at this video"),
        ("worker-lost", {"before": ("worker-lost",), "reclaimed": True}, None),
        ("worker-lost", {"before": ("worker-lost",), "gpu": False}, None),  # only publishing is left
        ("timeout", {}, None),
        ("timeout", {"progress": 0.0}, "it made no progress within the time limit"),
        ("timeout", {"progress": 0.4}, None),
        ("timeout", {"progress": 0.4, "before": ("timeout",)}, "it reached the time limit twice"),
        ("storage-unavailable", {"before": ("storage-unavailable",), "progress": 0.0}, None),
    ],
)
def test_a_video_that_no_worker_survives_pays_for_no_gpu_again(
    failure: str, more: dict[str, Any], reason: str | None
) -> None:
    failed = replace(FAILED, **{"failure": FailureClass(failure), "gpu": True, **more})
    verdict = judge(failed, CLOSED, BUDGET, 9999.0)
    assert verdict == (Start() if reason is None else Leave(f"It is not tried again: {reason}."))


def test_an_hours_budget_is_for_the_gpu_and_comes_back() -> None:
    spent = replace(BUDGET, started=(5000.0, 5001.0))
    assert kind(replace(FAILED, gpu=False), budget=spent, now=5002.0) == "Start"
    held = judge(replace(FAILED, gpu=True), CLOSED, spent, 5002.0)
    assert isinstance(held, Wait)
    assert held.refused
    assert kind(replace(FAILED, gpu=True), budget=spent, now=5000.0 + 3600) == "Start"


@given(
    failure=st.sampled_from(FailureClass),
    attempt=st.integers(0, 5),
    gpu=st.sampled_from([None, True, False]),
    age_s=st.floats(0, 10**5),
    started=st.lists(st.floats(0, 10**5), max_size=4),
    cause=st.sampled_from([None, OPERATOR, DUPLICATE_JOB, *FailureClass]),
    phase=st.sampled_from(Phase),
    since=st.floats(0, 10**5),
)
def test_no_start_exceeds_a_budget_or_meets_what_is_not_over(
    failure: FailureClass,
    attempt: int,
    gpu: bool | None,
    age_s: float,
    started: list[float],
    cause: str | None,
    phase: Phase,
    since: float,
) -> None:
    now = 10.0**5
    failed = FailedRun("r", "u", failure, now - age_s, attempt, gpu)
    breaker = BreakerState(phase if cause else Phase.CLOSED, since=since, cause=cause)
    budget = Budget(3, 2, tuple(started))
    verdict: Decision = judge(failed, breaker, budget, now)
    if isinstance(verdict, Start):
        assert attempt < 3
        assert not (gpu and budget.spent(now))
        assert not (breaker.paused and breaker.cause in (failure, OPERATOR, DUPLICATE_JOB))
        mended = cause == failure and since > failed.ended_at
        assert mended or (POLICIES[failure].transient and age_s >= delay_s(failed))
    if isinstance(verdict, Wait) and verdict.until is not None:
        assert now < verdict.until <= failed.ended_at + max(DELAYS_S)


@pytest.mark.parametrize(
    ("tags", "times", "asked"),
    [
        ({}, 0, "own"),
        ({".dagster/capstone.reexecution": "2", ".dagster/capstone.reexecution_of": "p",
          "dagster/parent_run_id": "p", "dagster/root_run_id": "first",
          ".dagster/capstone.request_run_id": "first"}, 2, "first"),
        # A person's re-execution in the UI takes all tags along, and is a request of its own.
        ({".dagster/capstone.reexecution": "3", ".dagster/capstone.reexecution_of": "p",
          "dagster/parent_run_id": "q", "dagster/root_run_id": "first",
          ".dagster/capstone.request_run_id": "first"}, 0, "own"),
    ],
)  # fmt: skip
def test_whose_request_a_run_serves_and_how_often_it_was_tried(
    tags: dict[str, str], times: int, asked: str
) -> None:
    assert attempts(tags) == times
    assert request_run_id("own", tags) == asked


@dataclass
class Sensor:
    """The sensor over Dagster's storage and a real event store; time goes by at will."""

    instance: dg.DagsterInstance
    services: Services
    monkeypatch: pytest.MonkeyPatch
    cursor: str | None = None

    def tick(self, after_s: float = 0.0) -> str:
        now = time.time() + after_s
        with self.monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: now)
            reader = Reader(self.instance, self.services, _definitions.get_repository_def(), self.cursor)
            account = reader.tick()
        self.cursor = reader.cursor
        return account

    @property
    def submitted(self) -> list[str]:
        """Ids of the runs in the queue, in order."""
        queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
        return [run.run_id for run in reversed(self.instance.get_runs(queued))]

    def run(self, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED, **tags: str) -> dg.DagsterRun:
        tags = {".dagster/capstone.upload_id": "u1", "dagster/partition": "v1"} | {
            name.replace("__", "/"): value for name, value in tags.items()
        }
        job = _definitions.resolve_job_def("analyze_upload")
        return self.instance.create_run_for_job(
            job, status=status, tags=tags, remote_job_origin=_ORIGIN, job_code_origin=_CODE_ORIGIN
        )

    def failed(self, failure: str, upload_id: str = "u1", **tags: str) -> dg.DagsterRun:
        """A run that failed for this class, and the status that its op wrote."""
        run = self.run(dg.DagsterRunStatus.STARTED, **{".dagster__capstone.upload_id": upload_id, **tags})
        self.fail(run, failure)
        fresh = self.instance.get_run_by_id(run.run_id)
        assert fresh is not None
        return fresh

    def fail(self, run: dg.DagsterRun, failure: str) -> None:
        upload_id = run.tags[".dagster/capstone.upload_id"]
        self.services.database.transact(
            mark_failed, upload_id, run.run_id, failure_class=failure, message="It failed."
        )
        self.instance.add_run_tags(run.run_id, {FAILURE_TAG: failure})
        self.instance.report_run_failed(run)

    def failed_backfill(self, failure: str) -> tuple[dg.DagsterRun, str]:
        """A backfill's run over v1 to v3 that failed at v2, as v1 had for good; the backfill's id."""
        self.instance.add_dynamic_partitions("videos", ["v1", "v2", "v3"])
        repository = _definitions.get_repository_def()
        ordered = request_backfill(
            self.instance, repository, ["v1", "v2", "v3"], events_only=False, force=False, by="kim"
        )
        run = self.instance.create_run_for_job(
            repository.get_job("__ASSET_JOB"),
            status=dg.DagsterRunStatus.STARTED,
            asset_selection={dg.AssetKey(name) for name in ("extracted_frames", "detections", "events")},
            tags={
                "dagster/backfill": ordered,
                "dagster/asset_partition_range_start": "v1",
                "dagster/asset_partition_range_end": "v3",
            },
            remote_job_origin=_REPOSITORY.get_job_origin("__ASSET_JOB"),
            job_code_origin=_CODE_ORIGIN,
        )
        self.services.database.transact(record_upload, replace(UPLOAD, upload_id="u2", video_id="v2"))
        for upload_id, word in (("u1", "undecodable-video"), ("u2", failure)):
            self.services.database.transact(
                mark_failed, upload_id, run.run_id, failure_class=word, message="It failed."
            )
        self.instance.add_run_tags(run.run_id, {FAILURE_TAG: failure})
        self.instance.report_run_failed(run)
        return run, ordered

    def child(self, run: dg.DagsterRun) -> dg.DagsterRun | None:
        return self.instance.get_run_by_id(reexecution_id(run.run_id))

    def status(self) -> dict[str, Any]:
        [row] = self.services.database.transact(current_status, "v1")
        return row


_definitions = dg.Definitions(
    assets=[raw_videos, video_analysis, events],
    jobs=[analyze_upload],
    resources={"services": object(), "io_manager": dg.mem_io_manager},
    executor=dg.in_process_executor,
)


# Where a run's definitions were found: without it Dagster queues none.
_LOCATION = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="m"), location_name="m")
_REPOSITORY = RemoteRepositoryOrigin(_LOCATION, "__repository__")
_ORIGIN = _REPOSITORY.get_job_origin("analyze_upload")
_CODE_ORIGIN = JobPythonOrigin(
    "analyze_upload",
    RepositoryPythonOrigin("python", ModuleCodePointer("m", "defs", working_directory=None)),
)


@pytest.fixture
def sensor(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sensor]:
    url = database.engine.url.render_as_string(hide_password=False)
    database.transact(record_upload, UPLOAD)
    coordinator = {"module": "dagster._core.run_coordinator", "class": "QueuedRunCoordinator"}
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path), {"run_coordinator": coordinator}) as instance:
        yield Sensor(instance, Services(read_settings(database_url=url)), monkeypatch)


def test_a_second_death_at_the_same_video_is_the_last_one_unless_the_machine_was_taken_away(
    sensor: Sensor,
) -> None:
    run: dg.DagsterRun | None = sensor.failed("worker-lost")
    for reclaimed in (False, True, False):
        assert run is not None
        if reclaimed:
            sensor.instance.add_run_tags(run.run_id, {RECLAIMED_TAG: "true"})
        if run.status != dg.DagsterRunStatus.FAILURE:
            sensor.fail(run, "worker-lost")
        sensor.tick()
        sensor.tick(601)
        run = sensor.child(run)
    assert run is None
    assert "It is not tried again: its worker died twice at this video." in sensor.status()["message"]


@pytest.mark.parametrize(("progress", "again"), [(0.0, False), (0.5, True)])
def test_a_time_out_without_progress_is_final(sensor: Sensor, progress: float, again: bool) -> None:
    run = sensor.run(dg.DagsterRunStatus.STARTED, batch_gpu__failure="timeout")
    sensor.services.database.transact(mark_running, "u1", run.run_id)
    sensor.services.database.transact(mark_running, "u1", run.run_id, progress)
    sensor.fail(run, "timeout")
    sensor.tick(31)
    sensor.tick(31)
    assert (sensor.child(run) is not None) == again
    assert again or "it made no progress within the time limit" in sensor.status()["message"]


def test_a_transient_failure_is_told_when_it_is_tried_again_and_then_is(sensor: Sensor) -> None:
    failed = sensor.failed("storage-unavailable")
    sensor.tick()
    row = sensor.status()
    assert row["state"] == "failed"
    assert row["message"].startswith("It failed. It is tried again at ")
    assert "+09:00 (attempt 1 of 3)." in row["message"]
    sensor.tick()
    assert sensor.status()["message"] == row["message"], "it says so once"
    assert sensor.submitted == []

    assert "1 failed runs were started again, 0 wait" in sensor.tick(31)

    child = sensor.child(failed)
    assert child is not None
    assert sensor.submitted == [child.run_id]
    assert (child.parent_run_id, child.root_run_id) == (failed.run_id, failed.run_id)
    assert child.tags[".dagster/capstone.upload_id"] == "u1"
    assert FAILURE_TAG not in child.tags
    assert attempts(child.tags) == 1
    row = sensor.status()
    assert (row["state"], row["run_id"], row["failure_class"]) == ("queued", child.run_id, None)
    assert "tried again after storage-unavailable" in row["message"]
    sensor.tick(40)
    assert sensor.submitted == [child.run_id]


def test_failures_of_a_request_are_counted_until_its_budget_is_used_up(sensor: Sensor) -> None:
    run = sensor.failed("storage-unavailable")
    for attempt in range(1, 4):
        sensor.tick(DELAYS_S[attempt - 1] + 1)
        child = sensor.child(run)
        assert child is not None
        assert attempts(child.tags) == attempt
        sensor.fail(child, "storage-unavailable")
        run = child

    sensor.tick(700)

    assert len(sensor.instance.get_runs()) == 4
    assert sensor.child(run) is None
    assert "CAPSTONE_REEXECUTIONS_PER_VIDEO (3) is used up" in sensor.status()["message"]


@pytest.mark.parametrize(
    "why",
    ["cancelled before it began", "re-executed by somebody", "a later run succeeded", "superseded",
     "cancelled", "done", "of no upload", "undecodable"],
)  # fmt: skip
def test_what_is_left_alone(sensor: Sensor, why: str) -> None:
    failure = "undecodable-video" if why == "undecodable" else "storage-unavailable"
    if why == "of no upload":
        job = _definitions.resolve_job_def("analyze_upload")
        run = sensor.instance.create_run_for_job(job, tags={FAILURE_TAG: failure})
        sensor.instance.report_run_failed(run)
    else:
        run = sensor.failed(failure)
    database = sensor.services.database
    if why == "cancelled before it began":  # Dagster reports such a run as failed
        sensor.instance.add_run_tags(run.run_id, {CANCELLED_TAG: run.run_id})
    elif why == "re-executed by somebody":
        sensor.run(dg.DagsterRunStatus.CANCELED, dagster__parent_run_id=run.run_id)
    elif why == "a later run succeeded":
        sensor.run(dg.DagsterRunStatus.SUCCESS)
    elif why == "superseded":
        database.transact(mark_superseded, "u1", run.run_id)
    elif why == "cancelled":
        database.transact(mark_running, "u1", "another")
        database.transact(mark_cancelled, "u1", "another")

    sensor.tick()
    if why == "done":
        sensor.monkeypatch.setattr(
            "capstone_dagster.runs.reexecution.upload_states", lambda *_: {"u1": "done"}
        )
    sensor.tick(31)

    assert sensor.submitted == []
    assert sensor.child(run) is None


@pytest.mark.parametrize("why", ["its record is damaged", "somebody was quicker", "it is done"])
def test_a_promise_that_is_not_kept_is_taken_back_by_another_notice(
    sensor: Sensor, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = sensor.services.database
    run = sensor.failed("storage-unavailable")
    database.transact(
        mark_failed,
        "u1",
        run.run_id,
        failure_class="storage-unavailable",
        message="It failed.",
        tried_again=True,
    )
    if why == "its record is damaged":
        nothing = Resumption([], Resumption.of(sensor.instance, run).known)
        monkeypatch.setattr(Resumption, "of", lambda *_: nothing)
    elif why == "somebody was quicker":
        sensor.run(dg.DagsterRunStatus.CANCELED, dagster__parent_run_id=run.run_id)
    else:
        database.transact(mark_running, "u1", "another")
    before = notices(database)

    sensor.tick(31)
    sensor.tick(32)

    sent = notices(database)[len(before) :]
    assert sent == (["video.failed"] if why == "its record is damaged" else [])
    last = dump(database, ["outbox"])["outbox"][-1].payload
    assert last["tried_again"] is not bool(sent)


@pytest.mark.parametrize("over", [False, True], ids=["that goes on", "that is over"])
def test_a_run_of_a_backfill_is_started_again_as_a_part_of_it_while_that_goes_on(
    sensor: Sensor, over: bool
) -> None:
    failed, ordered = sensor.failed_backfill("storage-unavailable")
    sensor.tick()
    rows = {row["video_id"]: row for row in sensor.services.database.transact(current_status)}
    assert "It is tried again at" in rows["v2"]["message"]
    assert rows["v1"]["message"] == "It failed."
    if over:
        backfill = sensor.instance.get_backfill(ordered)
        assert backfill is not None
        sensor.instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_FAILED))

    sensor.tick(31)
    sensor.tick(40)

    child = sensor.child(failed)
    assert child is not None
    assert sensor.submitted == [child.run_id]
    # As Dagster's own retries: its daemon waits for what belongs to a backfill, and ends it with it.
    assert child.tags.get("dagster/backfill") == (None if over else ordered)
    for name in ("job_name", "asset_selection", "asset_check_selection", "root_run_id"):
        expected = failed.run_id if name == "root_run_id" else getattr(failed, name)
        assert getattr(child, name) == expected
    ends = {f"dagster/asset_partition_range_{end}" for end in ("start", "end")}
    assert {name: child.tags[name] for name in ends} == {name: failed.tags[name] for name in ends}
    assert attempts(child.tags) == 1
    states = {row["video_id"]: row["state"] for row in sensor.services.database.transact(current_status)}
    assert states == {"v1": "failed", "v2": "queued"}

    # What Dagster has made no part of the backfill any more is the system's all the same.
    sensor.instance.add_run_tags(child.run_id, {FAILURE_TAG: "storage-unavailable"})
    sensor.instance.report_run_failed(child)
    sensor.tick(200)
    later = sensor.child(child)
    assert later is not None
    assert attempts(later.tags) == 2


@pytest.mark.parametrize("why", ["canceled", "being canceled", "gone", "done anew", "undecodable"])
def test_a_run_of_a_backfill_is_left_alone_where_somebody_has_decided(sensor: Sensor, why: str) -> None:
    failure = "undecodable-video" if why == "undecodable" else "storage-unavailable"
    failed, ordered = sensor.failed_backfill(failure)
    backfill = sensor.instance.get_backfill(ordered)
    assert backfill is not None
    if why == "gone":
        sensor.instance.add_run_tags(failed.run_id, {"dagster/backfill": "deleted"})
    elif why == "done anew":
        sensor.run(dg.DagsterRunStatus.QUEUED, dagster__parent_backfill_id=ordered)
    elif why.endswith("canceled"):
        state = BulkActionStatus.CANCELED if why == "canceled" else BulkActionStatus.CANCELING
        sensor.instance.update_backfill(backfill.with_status(state))
    before = sensor.submitted

    sensor.tick()
    sensor.tick(31)

    assert sensor.submitted == before
    assert sensor.child(failed) is None


def test_another_run_of_the_upload_that_is_not_over_is_waited_for(sensor: Sensor) -> None:
    sensor.failed("storage-unavailable")
    other = sensor.run()
    sensor.tick(31)
    assert sensor.submitted == []
    sensor.instance.report_run_canceled(other)
    sensor.tick(32)
    assert len(sensor.submitted) == 1


def test_a_tick_that_dies_between_making_and_submitting_a_run_is_completed_by_the_next(
    sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = sensor.failed("storage-unavailable")
    with monkeypatch.context() as dying:
        dying.setattr(
            "capstone_dagster.runs.reexecution.requeue", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            sensor.tick(31)
    child = sensor.child(failed)
    assert child is not None
    assert child.status == dg.DagsterRunStatus.NOT_STARTED

    sensor.tick(32)
    sensor.tick(33)

    assert sensor.submitted == [child.run_id]
    assert len(sensor.instance.get_runs()) == 2


def test_a_run_that_cannot_be_started_again_holds_up_nobody(sensor: Sensor) -> None:
    broken = sensor.failed("storage-unavailable")
    sensor.services.database.transact(record_upload, replace(UPLOAD, upload_id="u2", video_id="v2"))
    fine = sensor.failed("storage-unavailable", upload_id="u2")
    real = Resumption.of

    def sometimes(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Resumption:
        if run.run_id == broken.run_id:
            raise ValueError("its record is damaged")
        return real(instance, run)

    sensor.monkeypatch.setattr(Resumption, "of", sometimes)
    for seconds in range(31, 36):
        account = sensor.tick(seconds)

    assert sensor.submitted == [reexecution_id(fine.run_id)]
    assert "0 wait" in account


def test_while_the_event_store_is_away_failed_runs_wait_and_the_tick_goes_on(
    sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor.failed("storage-unavailable")
    there = sensor.services
    nowhere = {"database_url": None, "postgres_host": "127.0.0.1", "postgres_port": 1}
    sensor.services = Services(there.settings.model_copy(update=nowhere))
    assert "1 wait for their time" in sensor.tick(31)
    sensor.services = there
    sensor.tick(40)
    assert len(sensor.submitted) == 1


def test_the_breaker_holds_its_class_takes_a_probe_and_lets_all_follow_after_recovery(sensor: Sensor) -> None:
    first = sensor.failed("database-unavailable")
    sensor.services.database.transact(record_upload, replace(UPLOAD, upload_id="u2", video_id="v2"))
    second = sensor.failed("database-unavailable", upload_id="u2")
    now = time.time()
    paused = BreakerState(Phase.OPEN, since=now, cause=DATABASE, reason="", next_probe_at=now + 60)
    BREAKER.write(sensor.instance, paused)

    sensor.tick(100)
    assert sensor.submitted == []
    assert OFFERS.read(sensor.instance) == dict.fromkeys([first.run_id, second.run_id], str(DATABASE))
    assert "once database-unavailable is over" in sensor.status()["message"]

    BREAKER.write(
        sensor.instance,
        replace(paused, phase=Phase.HALF_OPEN, probe=Probe(now, reexecutes=second.run_id)),
    )
    sensor.tick(101)
    child = sensor.child(second)
    assert child is not None
    assert sensor.submitted == [child.run_id]
    assert (child.tags[PROBE_TAG], attempts(child.tags)) == ("true", 0)
    assert OFFERS.read(sensor.instance) == {first.run_id: str(DATABASE)}

    BREAKER.write(sensor.instance, BreakerState(since=now + 102, cause=DATABASE))
    sensor.tick(103)
    assert len(sensor.submitted) == 2
    assert OFFERS.read(sensor.instance) == {}


def test_gpu_work_of_an_hour_is_bounded(sensor: Sensor) -> None:
    update = {"reexecutions_per_hour": 1}
    sensor.services = Services(sensor.services.settings.model_copy(update=update))
    for number in (1, 2):
        sensor.services.database.transact(
            record_upload, replace(UPLOAD, upload_id=f"x{number}", video_id=f"w{number}")
        )
        sensor.failed("gpu-error", upload_id=f"x{number}")
    sensor.tick(31)
    sensor.tick(40)
    assert len(sensor.submitted) == 1
    sensor.tick(31 + 3600)
    assert len(sensor.submitted) == 2
