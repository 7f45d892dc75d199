"""Launcher, sensor and Dagster's monitoring against the fake Batch, in any order that hypothesis thinks of.

Submissions, crashes of the daemon, lost answers, throttling, lag, reclaimed machines, dying workers and
cancellations come at random; workers are played, and time is the fake's. Whatever happens: a run is executed
at most once at a time, every run ends, a run whose failure its worker did not report has a failure class, and
no job is left behind.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import patch

import dagster as dg
from botocore.exceptions import ClientError, ConnectionClosedError
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.instance import InstanceRef, InstanceType
from dagster._core.run_coordinator import DefaultRunCoordinator
from dagster._core.storage.event_log import InMemoryEventLogStorage
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.runs import InMemoryRunStorage
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batch_gpu.aws import BatchApi
from batch_gpu.config import from_yaml
from batch_gpu.endings import ENDED
from batch_gpu.errors import BatchGpuError, FailureClass
from batch_gpu.jobs import FAILURE_TAG, IDLE_TAG, JOB_ID_TAG, NONE, own_job_id
from batch_gpu.launcher import BatchGpuRunLauncher
from batch_gpu.sensor import watch_runs
from batch_gpu.testing import FakeBatch, Fault, Machines, Queue
from batch_gpu.testing.state import ConnectionCut, RequestError
from tests.batch_gpu.conftest import ROOT

CONFIG = {
    name: {
        "job_queue": name,
        "job_definition": "worker",
        "gpus": gpus,
        "max_wait_seconds": 13_500,
        "runs_per_job": 3,
    }
    for name, gpus in (("gpu", 1), ("cpu", 0))
}
SETTINGS = {
    # An interval of 0: each look asks AWS.
    "run_monitoring": {"enabled": True, "poll_interval_seconds": 0, "start_timeout_seconds": 14_400}
}
BLOCKED = (
    "MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED - unsupported",
    "ACTION_REQUIRED - CE(s) associated with the job queue are invalid.",
    "UNDETERMINED - Batch job is blocked, root cause is undetermined.",
)
PROJECT_REPOSITORY = ReconstructableRepository.for_module("tests.batch_gpu.project", "defs", str(ROOT))
UNFINISHED = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


class DaemonKilled(BaseException):
    """The daemon's process ends here."""


class Worker:
    """A container whose process does what the test says; has the methods of the fake's `Container`."""

    start_error = None
    pid = None

    def __init__(self, command: Any, environment: Mapping[str, str], *_: Any) -> None:
        self.run_id = environment["BATCH_GPU_RUN_ID"]
        self.job_id = environment["AWS_BATCH_JOB_ID"]
        self.runs_left = int(command[3]) if "batch_gpu.worker" in command else 1
        self.lines: list[tuple[int, str]] = []
        self.executing = self.stopping = self.idle = False
        self.code: int | None = None

    def exit_code(self) -> int | None:
        return self.code

    def stop(self, grace_s: float) -> None:
        self.stopping = True

    def kill(self) -> None:
        self.exit(137)

    def exit(self, code: int) -> None:
        self.executing = self.idle = False
        self.code = code if self.code is None else self.code


class Wire:
    """A boto3 client that hands its requests to the fake."""

    def __init__(self, batch: FakeBatch) -> None:
        self._batch = batch
        self.meta = SimpleNamespace(region_name="ap-northeast-2")

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        name = "".join(word.title() for word in operation.split("_"))

        def call(**request: Any) -> Any:
            try:
                return self._batch.handle(name, request)
            except ConnectionCut:
                raise ConnectionClosedError(endpoint_url="fake") from None
            except RequestError as error:
                answer = {"Error": {"Code": error.code, "Message": str(error)}}
                raise ClientError(
                    {**answer, "ResponseMetadata": {"HTTPStatusCode": error.status}},  # type: ignore[typeddict-item]
                    name,
                ) from None

        return call


class Api(BatchApi):
    """Requests of a daemon that may be killed before or after one; its waiting lets the fake's time pass."""

    killed: str | None = None

    def __init__(self, batch: FakeBatch) -> None:
        def now() -> float:
            return batch.clock.now_ms() / 1000

        super().__init__("ap-northeast-2", sleep=batch.clock.advance, clock=now)
        self._clients = {"batch": Wire(batch), "logs": Wire(batch)}

    def submit(self, request: Mapping[str, Any]) -> str:
        if self.killed == "before":
            raise DaemonKilled
        job_id = super().submit(request)
        if self.killed == "after":
            raise DaemonKilled
        return job_id


class Cloud(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.workers: list[Worker] = []
        self.runs: dict[str, str | None] = {}
        """What each run's worker said of its end."""
        self.forced: set[str] = set()
        self.batch = FakeBatch(
            [Queue("gpu", Machines(gpus=2)), Queue("cpu", Machines())],
            start_container=self.start_container,  # type: ignore[arg-type]
        )
        self.batch.define_job("worker", command=["dagster"])
        for name, time in (
            ("dagster._time._mockable_get_current_timestamp", self.now),
            ("dagster._time._mockable_get_current_datetime", lambda: datetime.fromtimestamp(self.now(), UTC)),
        ):
            self.stack.enter_context(patch(name, time))
        monitoring = "dagster._daemon.monitoring.run_monitoring.time"
        self.stack.enter_context(patch(monitoring, SimpleNamespace(time=self.now)))
        self.api = Api(self.batch)
        self.launcher = BatchGpuRunLauncher(from_yaml(CONFIG), api=self.api)
        home = self.stack.enter_context(TemporaryDirectory())
        self.instance = self.stack.enter_context(
            dg.DagsterInstance(
                instance_type=InstanceType.PERSISTENT,
                ref=InstanceRef.from_dir(home),  # for the command line of a worker, which nobody executes
                local_artifact_storage=LocalArtifactStorage(home),
                run_storage=InMemoryRunStorage(),
                event_storage=InMemoryEventLogStorage(),
                compute_log_manager=NoOpComputeLogManager(),
                run_coordinator=DefaultRunCoordinator(),
                run_launcher=self.launcher,
                settings=SETTINGS,
            )
        )
        self.workspace = self.stack.enter_context(WorkspaceProcessContext(self.instance, None))

    # --- what stands between the parts ---

    def now(self) -> float:
        return self.batch.clock.now_ms() / 1000

    def start_container(self, *args: Any) -> Worker:
        self.workers.append(Worker(*args))
        return self.workers[-1]

    def run(self, run_id: str) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def unfinished(self) -> list[str]:
        return [run_id for run_id in self.runs if self.run(run_id).status in UNFINISHED]

    def living(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.code is None]

    def placed(self) -> list[str]:
        return [job["jobId"] for job in self.batch.jobs() if job["status"] in ("STARTING", "RUNNING")]

    # --- the daemon ---

    @rule(
        job=st.sampled_from(["look_think_tell", "waits"]),
        killed=st.sampled_from([None, None, "before", "after"]),
        answer_lost=st.booleans(),
        listed_after_s=st.sampled_from([0, 20]),
    )
    def launch(self, job: str, killed: str | None, answer_lost: bool, listed_after_s: float) -> None:
        recon = PROJECT_REPOSITORY.get_reconstructable_job(job)
        run = self.instance.create_run_for_job(
            recon.get_definition(), job_code_origin=recon.get_python_origin()
        )
        self.runs[run.run_id] = None
        self.instance.report_dagster_event(
            dg.DagsterEvent("PIPELINE_STARTING", run.job_name), run.run_id, timestamp=self.now()
        )
        self.api.killed = killed
        self.batch.listing_lag_s = listed_after_s
        if answer_lost:
            self.batch.faults.append(Fault("SubmitJob", None, after=True))
        with suppress(BatchGpuError, DaemonKilled):
            self.launcher.submit(self.run(run.run_id), joins=True)
        self.api.killed = None

    @rule()
    def monitor(self) -> None:
        with self.workspace as context:
            list(execute_run_monitoring_iteration(context, logging.getLogger("monitoring")))

    @rule()
    def watch(self) -> None:
        watch_runs(self.instance, self.launcher, now=self.now)

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), force=st.booleans())
    def cancel(self, data: st.DataObject, force: bool) -> None:
        run_id = data.draw(st.sampled_from(self.unfinished()))
        if force:
            self.forced.add(run_id)
            self.instance.report_run_canceled(self.run(run_id))
            return
        with suppress(BatchGpuError):  # the UI says so, and the operator asks again
            self.launcher.terminate(run_id)

    # --- AWS ---

    @rule(seconds=st.sampled_from([1, 10, 50, 400, 2000]))
    def time_passes(self, seconds: int) -> None:
        self.batch.clock.advance(seconds)
        for _ in range(3):  # submitted, runnable, starting, running
            self.batch.step()

    @rule(
        operation=st.sampled_from(["SubmitJob", "DescribeJobs", "ListJobs", "TerminateJob"]),
        error=st.sampled_from([("TooManyRequestsException", 429), ("ServerException", 500), (None, 0)]),
        after=st.booleans(),
        times=st.integers(1, 3),
    )
    def requests_fail(self, operation: str, error: tuple[str | None, int], after: bool, times: int) -> None:
        code, status = error
        self.batch.faults.append(
            Fault(operation, code, status=status, after=after and status != 429, times=times)
        )

    @rule(describing_s=st.sampled_from([0, 20]))
    def answers_lag(self, describing_s: float) -> None:
        self.batch.describing_lag_s = describing_s

    @rule(reason=st.sampled_from([None, *BLOCKED]), machines=st.integers(0, 2))
    def machines_come_and_go(self, reason: str | None, machines: int) -> None:
        self.batch.queues["gpu"].blocked = reason
        self.batch.set_machines("cpu", Machines(count=machines))

    @precondition(lambda self: self.placed())
    @rule(data=st.data(), after_s=st.sampled_from([0, 50]))
    def machine_is_reclaimed(self, data: st.DataObject, after_s: float) -> None:
        self.batch.reclaim_host(data.draw(st.sampled_from(self.placed())), after_s)

    # --- workers ---

    @precondition(lambda self: self.living())
    @rule()
    def workers_begin(self) -> None:
        for worker in self.living():
            self.begin(worker)

    @precondition(lambda self: any(worker.executing for worker in self.workers))
    @rule(data=st.data(), end=st.sampled_from(["succeeds", "fails", "is killed", "exits"]))
    def worker_ends(self, data: st.DataObject, end: str) -> None:
        worker = data.draw(st.sampled_from([each for each in self.living() if each.executing]))
        if end in ("succeeds", "fails"):
            self.report(worker, end)
        else:
            worker.exit(137 if end == "is killed" else 0)

    @precondition(lambda self: self.unfinished())
    @rule(job=st.sampled_from(["look_think_tell", "waits"]), then=st.sampled_from(["killed", "given", None]))
    def a_run_follows_another(self, job: str, then: str | None) -> None:
        """Chance alone seldom has a run launched while a worker waits for one."""
        self.time_passes(1)
        self.workers_begin()
        for worker in [each for each in self.living() if each.executing and not each.stopping]:
            self.report(worker, "succeeds")
        self.launch(job, None, answer_lost=False, listed_after_s=0)
        for worker in self.living():
            if worker.idle and then == "killed":
                worker.exit(137)
            elif worker.idle and then == "given":
                self.begin(worker)

    @precondition(lambda self: any(worker.idle for worker in self.living()))
    @rule(given_meanwhile=st.booleans())
    def idle_workers_end(self, given_meanwhile: bool) -> None:
        for worker in self.living():
            if worker.idle:
                self.instance.add_run_tags(worker.run_id, {IDLE_TAG: NONE})
                if given_meanwhile:
                    self.begin(worker)
                if worker.idle:
                    worker.exit(0)

    @precondition(lambda self: any(worker.stopping for worker in self.living()))
    @rule()
    def workers_obey(self) -> None:
        for worker in self.living():
            if worker.stopping:
                self.obey(worker)

    def begin(self, worker: Worker) -> None:
        """As Dagster's `execute_run` does: a run that has begun, or ended, is no longer its own."""
        if worker.idle:
            self.go_on(worker)
        if worker.executing or worker.idle:
            return
        run = self.run(worker.run_id)
        if run.status != dg.DagsterRunStatus.STARTING:
            worker.exit(0)
            return
        worker.executing = True
        event = dg.DagsterEvent("PIPELINE_START", run.job_name)
        self.instance.report_dagster_event(event, run.run_id, timestamp=self.now())

    def report(self, worker: Worker, end: str) -> None:
        run = self.run(worker.run_id)
        if not run.is_finished:
            kind = "PIPELINE_SUCCESS" if end == "succeeds" else "PIPELINE_FAILURE"
            data = JobFailureData(error=None) if end == "fails" else None
            event = dg.DagsterEvent(kind, run.job_name, event_specific_data=data)
            self.instance.report_dagster_event(event, run.run_id, timestamp=self.now())
            self.runs[run.run_id] = end
        worker.runs_left -= 1
        if worker.runs_left and self.run(worker.run_id).status == dg.DagsterRunStatus.SUCCESS:
            worker.executing, worker.idle = False, True
            self.instance.add_run_tags(run.run_id, {IDLE_TAG: "true"})
            return
        worker.exit(0 if end == "succeeds" else 1)

    def go_on(self, worker: Worker) -> None:
        """Take the run that an idle worker was given, as `batch_gpu.worker` finds it."""
        starting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING], tags={JOB_ID_TAG: worker.job_id})
        for run in self.instance.get_runs(starting):
            if own_job_id(run.run_id, run.tags) == worker.job_id:
                worker.run_id, worker.idle = run.run_id, False
                return

    def obey(self, worker: Worker) -> None:
        """As Dagster's worker does on SIGTERM."""
        run = self.run(worker.run_id)
        if worker.executing and run.status == dg.DagsterRunStatus.CANCELING:
            self.instance.report_run_canceled(run)
        elif worker.executing and not run.is_finished:
            reason = JobFailureData(error=None, failure_reason=RunFailureReason.UNEXPECTED_TERMINATION)
            self.instance.report_run_failed(run, "Execution was interrupted unexpectedly.", reason)
        worker.exit(143)

    # --- what holds ---

    @invariant()
    def a_run_is_executed_once_at_a_time(self) -> None:
        executing = [worker.run_id for worker in self.workers if worker.executing]
        assert len(executing) == len(set(executing))

    @invariant()
    def a_run_is_not_given_up_while_its_worker_lives(self) -> None:
        """Otherwise it would be tried again beside it. An operator may do so, by force."""
        executing = {worker.run_id for worker in self.workers if worker.executing and not worker.stopping}
        assert [run for run in executing - self.forced if self.run(run).is_finished] == []

    def teardown(self) -> None:
        try:
            self.end_everything()
        finally:
            self.stack.close()

    def end_everything(self) -> None:
        """The trouble is over; what is begun comes to its end."""
        self.batch.faults.clear()
        self.batch.listing_lag_s = self.batch.describing_lag_s = 0
        self.machines_come_and_go(None, 2)
        for turn in range(60):
            self.time_passes(50)
            for worker in self.living():
                if worker.stopping:
                    self.obey(worker)
                elif worker.executing and turn % 3 == 2:
                    self.report(worker, "succeeds")
                elif worker.idle and turn < 9:
                    self.a_run_follows_another("look_think_tell", (None, "given", "killed")[turn % 3])
                elif worker.idle and turn % 3 == 1:
                    worker.exit(0)
                else:
                    self.begin(worker)
            self.a_run_is_executed_once_at_a_time()
            self.monitor()
            self.watch()
            self.a_run_is_not_given_up_while_its_worker_lives()
            if not self.unfinished() and all(job["status"] in ENDED for job in self.batch.jobs()):
                break
        assert self.unfinished() == []
        assert [job["jobName"] for job in self.batch.jobs() if job["status"] not in ENDED] == []
        self.watch()  # explains the last interruption
        for run_id, said in self.runs.items():
            run = self.run(run_id)
            if run.status == dg.DagsterRunStatus.FAILURE and said is None:
                assert run.tags.get(FAILURE_TAG, NONE) in get_args(FailureClass), run.tags


Cloud.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking takes minutes: the steps of a failure are few enough to read
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCloud = Cloud.TestCase
