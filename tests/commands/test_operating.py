"""`capstone cancel`, `prioritize` and `retry`, over Dagster's own queue and a real event store."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.launcher.base import LaunchRunContext

from capstone_dagster.assets.declared.videos import analyze_upload, events, raw_videos, video_analysis
from capstone_dagster.commands import operating as command
from capstone_dagster.commands.dagster_tables import read_queue
from capstone_dagster.failures.classes import POLICIES, FailureClass
from capstone_dagster.failures.requests import attempts
from capstone_dagster.failures.retry_policy import will_try_again
from capstone_dagster.failures.verdicts import failed_run
from capstone_dagster.run_tags import FAILURE_TAG
from capstone_dagster.runs import by_hand
from capstone_dagster.runs.lineage import reexecution_id
from capstone_dagster.runs.queueing import ordinal, places
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.video_status import (
    UploadCancelled,
    current_status,
    mark_failed,
    mark_queued,
    mark_running,
)
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import ANALYSIS, FACTS, ROWS, UPLOAD, notices, publish
from tests.support.command_line import Capstone
from tests.support.dagster_home import dagster_home
from tests.support.ended_runs import Reader
from tests.support.origin import CODE_ORIGIN, REMOTE_ORIGIN

QUEUED, STARTED = dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED
_definitions = dg.Definitions(
    assets=[raw_videos, video_analysis, events],
    jobs=[analyze_upload],
    resources={"services": object(), "io_manager": dg.mem_io_manager},
    executor=dg.in_process_executor,
)


class Worker(dg._core.launcher.RunLauncher):
    """Ends runs as a launcher does whose worker answers; or not, if it is lost."""

    lost = False

    def launch_run(self, context: LaunchRunContext) -> None: ...

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        self._instance.report_run_canceling(run)
        if not self.lost:
            self._instance.report_run_canceled(run)
        return not self.lost


@dataclass
class Operations:
    """Videos with their runs, as the commands find them."""

    instance: dg.DagsterInstance
    database: Database
    services: Services

    def upload(self, number: int) -> None:
        self.database.transact(record_upload, replace(UPLOAD, upload_id=f"u{number}", video_id=f"v{number}"))

    def run(self, number: int, status: dg.DagsterRunStatus = QUEUED, **tags: str) -> dg.DagsterRun:
        """A run of a video, and its upload's row as it is then."""
        self.upload(number)
        own = {".dagster/capstone.upload_id": f"u{number}"}
        if not any("range" in name for name in tags):
            own["dagster/partition"] = f"v{number}"
        run = self.instance.create_run_for_job(
            _definitions.resolve_job_def("analyze_upload"),
            status=dg.DagsterRunStatus.NOT_STARTED if status == QUEUED else status,
            tags=own | {name.replace("__", "/"): value for name, value in tags.items()},
            remote_job_origin=REMOTE_ORIGIN,
            job_code_origin=CODE_ORIGIN,
        )
        if status == QUEUED:
            self.instance.submit_run(run.run_id, workspace=None)  # type: ignore[arg-type]
        self.database.transact(mark_queued, {f"u{number}": run.run_id})
        if status == STARTED:
            self.database.transact(mark_running, f"u{number}", run.run_id)
        return self.fresh(run)

    def failed(self, number: int, failure: str = "database-unavailable", **tags: str) -> dg.DagsterRun:
        run = self.run(number, STARTED, **tags)
        self.database.transact(
            mark_failed, f"u{number}", run.run_id, failure_class=failure, message="It failed."
        )
        self.instance.add_run_tags(run.run_id, {FAILURE_TAG: failure})
        self.instance.report_run_failed(run)
        return self.fresh(run)

    def fresh(self, run: dg.DagsterRun) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found

    def row(self, number: int) -> dict[str, Any]:
        [row] = self.database.transact(current_status, f"v{number}")
        return row


@pytest.fixture
def operations(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operations]:
    coordinator = "run_coordinator: {module: dagster._core.run_coordinator, class: QueuedRunCoordinator}"
    url = database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("DAGSTER_HOME", dagster_home(tmp_path, coordinator))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"sqlite:///{tmp_path}/history/runs.db")
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    monkeypatch.setattr(by_hand, "_POLL_S", 0.02)
    monkeypatch.setattr(command, "repository", _definitions.get_repository_def)
    with dg.DagsterInstance.get() as instance:
        # The command opens an instance of its own; how workers end is decided here for both.
        worker = Worker()
        worker.register_instance(instance)
        monkeypatch.setattr(dg.DagsterInstance, "run_launcher", property(lambda _: worker))
        monkeypatch.setattr(Worker, "lost", False)
        yield Operations(instance, database, Services(read_settings()))


@pytest.mark.parametrize("status", [QUEUED, dg.DagsterRunStatus.STARTING, STARTED])
def test_cancel_ends_a_run_at_every_stage(
    operations: Operations, capstone: Capstone, status: dg.DagsterRunStatus
) -> None:
    run = operations.run(1, status)

    outcome = capstone("cancel", "v1", "--by", "kim")

    assert (outcome.code, outcome.out) == (0, "v1 is cancelled; 1 run ended.\n")
    assert operations.fresh(run).status == dg.DagsterRunStatus.CANCELED
    row = operations.row(1)
    assert (row["state"], row["message"], row["failure_class"]) == ("cancelled", "Cancelled by kim.", None)
    # What its worker still says changes nothing, and no sensor starts it again.
    with pytest.raises(UploadCancelled):
        operations.database.transact(mark_running, "u1", run.run_id, 0.5)
    operations.database.transact(
        mark_failed, "u1", run.run_id, failure_class="internal", message="It was interrupted."
    )
    _tick(operations)
    assert operations.row(1) == row
    assert len(operations.instance.get_runs()) == 1
    assert notices(operations.database) == ["video.received"]
    again = capstone("cancel", "v1")
    assert again.code == 1
    assert "There is nothing to cancel: v1 is cancelled." in again.err


def test_a_run_that_intake_has_not_acknowledged_yet_is_cancelled_too(
    operations: Operations, capstone: Capstone
) -> None:
    run = operations.run(1)
    with operations.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE capstone.video_status SET state = 'received', run_id = NULL")

    assert capstone("cancel", "v1").code == 0
    operations.database.transact(mark_queued, {"u1": run.run_id})
    assert operations.row(1)["state"] == "cancelled"


def test_cancel_keeps_what_failed_from_being_tried_again(operations: Operations, capstone: Capstone) -> None:
    operations.failed(1)
    _tick(operations)
    assert "It is tried again at" in operations.row(1)["message"]

    assert capstone("cancel", "v1").out == "v1 is cancelled; 0 runs ended.\n"

    _tick(operations, after_s=31)
    assert operations.row(1)["state"] == "cancelled"
    assert len(operations.instance.get_runs()) == 1


def test_a_worker_that_does_not_answer_needs_force(
    operations: Operations, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = operations.run(1, STARTED)
    monkeypatch.setattr(Worker, "lost", True)
    real = by_hand.cancel
    monkeypatch.setattr(by_hand, "cancel", lambda *words, **options: real(*words, **options, deadline_s=0.2))

    outcome = capstone("cancel", "v1")
    assert outcome.code == 1
    assert "its worker does not answer. It publishes nothing any more. `--force`" in outcome.err
    assert operations.fresh(run).status == dg.DagsterRunStatus.CANCELING
    analysis = replace(ANALYSIS, video_id="v1", upload_id="u1", run_id=run.run_id)
    with pytest.raises(UploadCancelled, match=r"The analysis was cancelled\. Cancelled by"):
        operations.database.transact(publish_analysis, analysis, ROWS, FACTS)

    assert capstone("cancel", "v1", "--force").code == 0
    assert operations.fresh(run).status == dg.DagsterRunStatus.CANCELED
    assert operations.row(1)["state"] == "cancelled"


def test_a_run_that_misses_its_signal_is_asked_again(
    operations: Operations, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler's exception can be swallowed where it is raised, as within a callback of a C library."""
    run = operations.run(1, STARTED)
    asked: list[str] = []

    def terminate(worker: Worker, run_id: str) -> bool:
        asked.append(run_id)
        worker.lost = len(asked) < 3
        return ends(worker, run_id)

    ends = Worker.terminate
    monkeypatch.setattr(Worker, "terminate", terminate)
    monkeypatch.setattr(by_hand, "_ASK_AGAIN_S", 0.05)

    assert capstone("cancel", "v1").out == "v1 is cancelled; 1 run ended.\n"
    assert asked == [run.run_id] * 3


def test_a_run_that_publishes_before_it_can_be_ended_is_not_called_cancelled(
    operations: Operations, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = operations.run(1, STARTED)
    analysis = replace(ANALYSIS, video_id="v1", upload_id="u1", run_id=run.run_id)
    record = by_hand._Intention.record

    def too_late(intention: Any, upload_id: str, run_id: str) -> bool:
        operations.database.transact(publish_analysis, analysis, ROWS, FACTS)
        return record(intention, upload_id, run_id)

    monkeypatch.setattr(by_hand._Intention, "record", too_late)

    outcome = capstone("cancel", "v1")

    assert outcome.code == 1
    assert "v1 was published before its run could be ended. `capstone delete v1` deletes" in outcome.err
    assert operations.row(1)["state"] == "done"
    assert operations.fresh(run).status == STARTED


def test_cancel_ends_a_backfills_run_over_this_video_alone(
    operations: Operations, capstone: Capstone
) -> None:
    """A backfill's run names the stretch of its partitions, also where that is one."""
    stretch = {"dagster__asset_partition_range_start": "v1", "dagster__asset_partition_range_end": "v1"}
    operations.instance.add_dynamic_partitions("videos", ["v1"])
    run = operations.run(1, STARTED, **stretch)

    assert capstone("cancel", "v1").out == "v1 is cancelled; 1 run ended.\n"
    assert operations.fresh(run).status == dg.DagsterRunStatus.CANCELED


def test_cancel_refuses_what_would_stop_others_or_nothing(operations: Operations, capstone: Capstone) -> None:
    operations.upload(1)
    assert "v1 has no run yet" in capstone("cancel", "v1").err
    shared = operations.run(2, STARTED, dagster__partition="v9")
    refused = capstone("cancel", "v2")
    assert refused.code == 1
    assert "analyses other videos besides v2" in refused.err
    assert operations.fresh(shared).status == STARTED
    operations.upload(3)
    publish(operations.database, video_id="v3", upload_id="u3")
    assert "There is nothing to cancel: v3 is done." in capstone("cancel", "v3").err
    assert capstone("cancel", "nobody").code == 2


def in_order() -> list[str]:
    queue = read_queue()
    return list(places(queue.waiting, queue.running))


def test_prioritize_lets_a_video_go_first_or_last(operations: Operations, capstone: Capstone) -> None:
    runs = {number: operations.run(number) for number in (1, 2, 3)}
    asked = operations.run(4, dagster__priority="5")
    assert in_order() == [asked.run_id, *(runs[n].run_id for n in (1, 2, 3))]

    assert capstone("prioritize", "v3").out == "v3 is 1st of 4 in the queue.\n"
    assert operations.fresh(runs[3]).tags["dagster/priority"] == "1000"
    assert capstone("prioritize", "v1", "--priority", "-1").out == "v1 is 4th of 4 in the queue.\n"
    assert in_order() == [
        runs[3].run_id, asked.run_id, runs[2].run_id, runs[1].run_id,
    ]  # fmt: skip
    assert capstone("prioritize", "v1", "--priority", "5000").code == 2


def test_dagsters_own_queue_takes_runs_in_that_order(operations: Operations, capstone: Capstone) -> None:
    """The order that is shown is the one that Dagster's daemon follows."""
    from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

    for number in range(1, 6):
        operations.run(number, dagster__priority=str(number % 3))
    capstone("prioritize", "v4", "--priority", "2")
    config = operations.instance.get_concurrency_config()
    with QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        taken = daemon._get_runs_to_dequeue(operations.instance, config, None)
    assert [run.run_id for run in taken] == in_order()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (None, "v1 has no run yet"),
        (dg.DagsterRunStatus.STARTING, "has left Dagster's queue and waits for its machine"),
        (STARTED, "v1 is past the queue: it is running"),
    ],
)
def test_what_does_not_wait_in_the_queue_cannot_go_first(
    operations: Operations, capstone: Capstone, status: dg.DagsterRunStatus | None, message: str
) -> None:
    operations.run(1, status) if status else operations.upload(1)
    outcome = capstone("prioritize", "v1")
    assert outcome.code == 1
    assert message in outcome.err


def test_retry_goes_on_from_the_failed_step(operations: Operations, capstone: Capstone) -> None:
    failed = operations.failed(1, "undecodable-video")

    dry = capstone("retry", "v1", "--dry-run", "--json")
    [answer] = json.loads(dry.out)
    assert (answer["video_id"], answer["gpu"], answer["run_id"]) == ("v1", True, None)
    assert len(operations.instance.get_runs()) == 1

    outcome = capstone("retry", "v1", "--by", "kim")

    assert outcome.code == 0
    assert "1 run started again, 1 of them on the GPU." in outcome.out
    again = operations.instance.get_run_by_id(reexecution_id(failed.run_id))
    assert again is not None
    assert (again.status, again.parent_run_id, attempts(again.tags)) == (QUEUED, failed.run_id, 0)
    row = operations.row(1)
    assert (row["state"], row["run_id"], row["message"]) == (
        "queued",
        again.run_id,
        "It is tried again by kim.",
    )
    # The sensor that starts runs again sees that somebody has.
    _tick(operations, after_s=31)
    assert len(operations.instance.get_runs()) == 2
    second = capstone("retry", "v1")
    assert second.code == 1
    assert "v1 has not failed: it is queued." in second.err
    assert "0 runs started again, 0 of them on the GPU; 1 left alone." in second.out


def test_retry_chooses_by_class_and_time(operations: Operations, capstone: Capstone) -> None:
    for number, failure in enumerate(["database-unavailable", "gpu-error", "database-unavailable"], start=1):
        operations.failed(number, failure)
    with operations.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE capstone.video_status SET updated_at = now() - interval '3 hours' WHERE upload_id = 'u3'"
        )

    def chosen(*options: str) -> list[str]:
        outcome = capstone("retry", *options, "--dry-run", "--json")
        assert outcome.code == 0
        return [each["video_id"] for each in json.loads(outcome.out)]

    assert chosen("--class", "database-unavailable") == ["v3", "v1"]
    assert chosen("--class", "database-unavailable", "--since", "2h") == ["v1"]
    assert chosen("--since", "1d") == ["v3", "v1", "v2"]
    assert chosen("v2", "v3", "--class", "gpu-error") == ["v2"]
    assert capstone("retry", "--class", "timeout").out == "0 runs started again, 0 of them on the GPU.\n"
    assert "2 runs started again" in capstone("retry", "--since", "2h").out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name videos, or choose by --class or --since"),
        (["--class", "bad-luck"], "is no failure class"),
        (["--since", "tomorrow"], "got 'tomorrow'"),
        (["nobody"], "no video 'nobody' is known"),
    ],
)
def test_retry_refuses_what_it_does_not_understand(
    operations: Operations, capstone: Capstone, options: list[str], message: str
) -> None:
    outcome = capstone("retry", *options)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.replace("│", " ").split())


@pytest.mark.parametrize("why", ["pruned", "started again", "shared", "still ending"])
def test_retry_says_why_it_leaves_one_alone(operations: Operations, capstone: Capstone, why: str) -> None:
    run = operations.failed(1)
    answer = {
        "pruned": "is no longer on record",
        "started again": "was started again already, as run",
        "shared": "analysed other videos besides v1",
        "still ending": "not over yet",
    }[why]
    if why == "pruned":
        operations.instance.delete_run(run.run_id)
    elif why == "started again":
        operations.run(1, dagster__parent_run_id=run.run_id)
    elif why == "shared":
        operations.instance.add_run_tags(run.run_id, {"dagster/partition": "v9"})
    else:
        other = operations.run(2, STARTED)
        operations.database.transact(mark_failed, "u1", other.run_id, failure_class="internal", message="x")
    operations.failed(3)

    outcome = capstone("retry", "v1", "v3")

    assert outcome.code == 1
    assert answer in outcome.err
    assert "1 run started again, 1 of them on the GPU; 1 left alone." in outcome.out, "the others are started"


def test_a_run_that_a_dying_sensor_left_is_started(
    operations: Operations, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = operations.failed(1)
    with monkeypatch.context() as dying:
        dying.setattr("capstone_dagster.runs.reexecution.requeue", _die)
        with pytest.raises(KeyboardInterrupt):
            _tick(operations, after_s=31)

    assert "1 run started again" in capstone("retry", "v1").out

    again = operations.instance.get_run_by_id(reexecution_id(failed.run_id))
    assert again is not None
    assert again.status == QUEUED


def test_without_dagsters_records_it_is_said(
    database: Database, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    database.transact(record_upload, UPLOAD)
    for name in ("cancel", "prioritize", "retry"):
        outcome = capstone(name, "v1")
        assert outcome.code == 1
        assert "DAGSTER_HOME is not set" in outcome.err


@pytest.mark.parametrize("failure", sorted(FailureClass))
def test_a_notice_says_whether_the_system_tries_again(failure: FailureClass) -> None:
    tags = {".dagster/capstone.upload_id": "u1"}

    def again(job: str, tags: dict[str, str]) -> bool:
        run = dg.DagsterRun(job_name=job, run_id="r", tags=tags)
        return will_try_again(failed_run(run, failure, 0.0), 3)

    assert again("analyze_upload", tags) is POLICIES[failure].transient
    assert again("__ASSET_JOB", {"dagster/backfill": "b"}) is POLICIES[failure].transient
    # Of runs that a person has started only a lost worker is replaced.
    for job, theirs in (("analyze_upload", {}), ("__ASSET_JOB", tags), ("analyze_videos", tags)):
        assert again(job, theirs) is (failure == FailureClass.WORKER_LOST)
    third = {
        ".dagster/capstone.reexecution": "3",
        ".dagster/capstone.reexecution_of": "p",
        "dagster/parent_run_id": "p",
    }
    assert not again("analyze_upload", tags | third)


@pytest.mark.parametrize(
    ("number", "message"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (21, "21st"), (112, "112th")],
)
def test_ordinals(number: int, message: str) -> None:
    assert ordinal(number) == message


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def _tick(operations: Operations, after_s: float = 0.0) -> None:
    with pytest.MonkeyPatch.context() as patched:
        now = time.time() + after_s
        patched.setattr(time, "time", lambda: now)
        Reader(operations.instance, operations.services, _definitions.get_repository_def()).tick()
