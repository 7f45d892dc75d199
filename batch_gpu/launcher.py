"""The run launcher: each Dagster run is one AWS Batch job, on a GPU machine only if the run needs one. Where
runs wait, a job that has ended its run may execute the next one (`worker`).

Read from the top: launching, ending, looking after. What AWS says is interpreted in `endings`, requests
are built in `jobs`, and sent by `aws`; none of the three knows Dagster.
"""

import base64
import math
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, MetadataValue, RunsFilter

from batch_gpu.aws import BatchApi, log_group
from batch_gpu.compute import ComputeClass, compute_class
from batch_gpu.config import JobConfig, LauncherConfig, config_schema, from_yaml
from batch_gpu.dagster_private import (
    IN_PROGRESS_RUN_STATUSES,
    RUN_WORKER_ID_TAG,
    WILL_RETRY_TAG,
    CheckRunHealthResult,
    ConfigurableClass,
    ConfigurableClassData,
    EngineEventData,
    ExecuteRunArgs,
    LaunchRunContext,
    ResumeRunArgs,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
    get_current_timestamp,
    serialize_value,
)
from batch_gpu.endings import ENDED, Ending, Job, ending_of, last_container, lost_to_reclaim
from batch_gpu.errors import AwsUnavailable, BatchGpuError, ConfigurationError, JobNotListed
from batch_gpu.job_definitions import JobDefinitions
from batch_gpu.jobs import (
    IDLE_TAG,
    JOB_ID_TAG,
    JOB_NAME_TAG,
    JOB_QUEUE_TAG,
    JOINED_TAG,
    LOG_STREAM_TAG,
    NONE,
    OUTCOME_TAGS,
    STATUS_TAG,
    TERMINATED,
    WORK_KEY_TAG,
    is_cancelled,
    job_name,
    own_job_id,
    submission_began,
    submit_request,
    summary,
    work_key,
)
from batch_gpu.links import job_url, log_url
from batch_gpu.local import LocalLauncher, launched_locally

# A command longer than this is handed over compressed: ECS takes 8192 characters with the environment.
LONGEST_PLAIN_COMMAND = 4000
# AWS's answers may lag behind SubmitJob; how long a missing job of a begun run is taken for that. Metaflow's
# client, too, has met DescribeJobs' answers without the job that was just submitted.
LISTING_GRACE_S = 300.0
PLANS_REMEMBERED = 1000

_Plan = tuple[Mapping[str, Mapping[str, str]], Sequence[str] | None]


class BatchGpuRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """Launches runs as AWS Batch jobs, or with `compute: local` as processes of this machine."""

    def __init__(
        self,
        config: LauncherConfig,
        inst_data: ConfigurableClassData | None = None,
        api: BatchApi | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = config
        self.api = api or BatchApi(config.region, config.submit_deadline_seconds)
        self.local = LocalLauncher(config.preload)
        self._inst_data = inst_data
        self._definitions = JobDefinitions(self.api)
        self._board = _Board(self.api)
        self._plans: dict[str, _Plan] = {}
        self._taking = threading.Lock()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        return config_schema()

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        return cls(from_yaml(config_value), inst_data)

    def register_instance(self, instance: DagsterInstance) -> None:
        super().register_instance(instance)
        self.local.register_instance(instance)

    # --- launching ---

    def launch_run(self, context: LaunchRunContext) -> None:
        """Submit the run's job, or start its process.

        Called again for a run whose submission was cut off it finds the job and adopts it.
        """
        run = self._fresh(context.dagster_run)
        if is_cancelled(run.run_id, run.tags):
            # Dagster's queue takes a run by what it read before the run was canceled.
            self._instance.report_run_canceled(run, "The run was canceled before it was launched.")
            return
        if self.config.compute == "batch":
            self.submit(context.dagster_run, joins=True)
            return
        try:
            self.local.launch_run(context)
        except BatchGpuError as error:
            self.fail(context.dagster_run, Ending(error.failure_class, error.transient, str(error)))
            raise

    @property
    def supports_resume_run(self) -> bool:
        return self.config.compute == "batch"

    def resume_run(self, context: ResumeRunContext) -> None:
        """Submit another job that goes on with a run whose worker was lost."""
        self.submit(context.dagster_run, resumed=context.resume_attempt_number or 1)

    def submit(self, run: DagsterRun, resumed: int = 0, *, joins: bool = False) -> str:
        """Submit the run's job and return its id; one that was submitted before is adopted.

        Args:
            joins: a worker that waits for a run may execute it, if there is one. For the process alone that
                launches queued runs: two could give one worker two runs.

        Two things are written to the run: a mark before the request, so that after a crash it is
        on record that a job may exist, and the job's id after it.

        Raises:
            BatchGpuError: the run has failed with this error's class.
        """
        try:
            name = job_name(self.config.job_name_prefix, run.run_id, resumed)
            known = run.tags
            compute, job = self.job_of(run)
            if known.get(JOB_NAME_TAG) == name:
                queue = known[JOB_QUEUE_TAG]
                job_id = own_job_id(run.run_id, known) or self.api.find(queue, name)
                if job_id is not None:
                    self._adopt(run, job_id, queue)
                    return job_id
            runs = 1 if resumed else job.runs_per_job or 1
            request = submit_request(
                name=name,
                job=job,
                job_definition=self._definitions.for_job(job),
                command=self._command(run, resuming=resumed > 0, runs=runs),
                run_id=run.run_id,
                dagster_job=run.job_name,
                run_tags={tag: run.tags[tag] for tag in self.config.run_tags if tag in run.tags},
            )
            request = {**self.customized(run, request), "jobName": name, "jobQueue": job.job_queue}
            marks = {tag: NONE for tag in OUTCOME_TAGS if tag in known}
            marks |= {JOB_NAME_TAG: name, JOB_QUEUE_TAG: str(job.job_queue)}
            if runs > 1:
                marks[WORK_KEY_TAG] = work_key(request, str(run.job_code_origin))
                # A later try has its job's whole time limit, and meets nobody whom it could take along.
                if joins and run.parent_run_id is None:
                    joined = self._idle_job(marks[WORK_KEY_TAG])
                    if joined is not None:
                        self._join(run, joined, marks)
                        return joined
            self._instance.add_run_tags(run.run_id, marks)
            job_id = self.api.submit(request)
            self._instance.add_run_tags(run.run_id, {JOB_ID_TAG: job_id, RUN_WORKER_ID_TAG: job_id})
            if self._fresh(run).is_finished:  # canceled meanwhile, while AWS throttled for example
                self.end_job(run, job_id, f"Run {run.run_id} ended before its job was submitted.")
        except BatchGpuError as error:
            self.fail(run, Ending(error.failure_class, error.transient, str(error)))
            raise
        self._report(run, f"Submitted {summary(name, job, compute)}.", self._job_metadata(job_id))
        return job_id

    def submit_own(self, run: DagsterRun) -> str:
        """Submit a job for a run that has joined another run's, which has ended before it began the run.

        Raises:
            BatchGpuError: as above.
        """
        left = {JOINED_TAG: NONE, JOB_NAME_TAG: NONE, JOB_ID_TAG: NONE}
        self._instance.add_run_tags(run.run_id, left)
        return self.submit(self._fresh(run))

    def _idle_job(self, key: str) -> str | None:
        """A job whose worker waits for a run of this key; it is taken, and no other run finds it."""
        with self._taking:
            waiting = RunsFilter(tags={WORK_KEY_TAG: key, IDLE_TAG: "true"})
            for done in self._instance.get_runs(waiting):
                job_id = own_job_id(done.run_id, done.tags)
                # A later run inherits the tags, and a lost worker leaves its own behind.
                if job_id is None or done.status != DagsterRunStatus.SUCCESS:
                    continue
                try:
                    job = self.api.describe([job_id]).get(job_id)
                except AwsUnavailable:
                    return None
                self._instance.add_run_tags(done.run_id, {IDLE_TAG: NONE})
                if job is not None and job["status"] == "RUNNING":
                    return job_id
        return None

    def _join(self, run: DagsterRun, job_id: str, marks: Mapping[str, str]) -> None:
        ids = {JOB_ID_TAG: job_id, RUN_WORKER_ID_TAG: job_id, JOINED_TAG: run.run_id}
        self._instance.add_run_tags(run.run_id, {**marks, **ids})
        message = f"AWS Batch job {job_id}, which has executed another run, goes on with this one."
        self._report(run, message, self._job_metadata(job_id))

    def customized(self, run: DagsterRun, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """SubmitJob's parameters for a run, for subclasses to change.

        The job's name and queue stay: the job is found again by them.
        """
        return request

    def job_of(self, run: DagsterRun) -> tuple[ComputeClass, JobConfig]:
        """What a run needs, and the configuration of its job.

        Raises:
            ConfigurationError: a tag, the code location's context or the configuration is not valid.
        """
        steps, selected = self._plan(run.execution_plan_snapshot_id)
        compute = compute_class(steps, run.step_keys_to_execute or selected, run.tags)
        location = run.job_code_origin.repository_origin if run.job_code_origin else None
        return compute, self.config.job(
            compute,
            run.tags,
            image=location.container_image if location else None,
            context=location.container_context if location else None,
        )

    def _plan(self, snapshot_id: str | None) -> _Plan:
        """The steps of an execution plan with their tags, and those to execute."""
        if snapshot_id is None:
            return {}, None
        if snapshot_id not in self._plans:  # many runs of one job share a plan
            plan = self._instance.get_execution_plan_snapshot(snapshot_id)
            if len(self._plans) >= PLANS_REMEMBERED:
                self._plans.clear()
            steps = {step.key: step.tags or {} for step in plan.steps}
            self._plans[snapshot_id] = (steps, plan.step_keys_to_execute or None)
        return self._plans[snapshot_id]

    def _command(self, run: DagsterRun, *, resuming: bool, runs: int) -> list[str]:
        origin = run.job_code_origin
        if origin is None:
            raise ConfigurationError(
                f"Run {run.run_id} has no origin in Python code, so that no other process can load its job. "
                "Launch it from a code location."
            )
        # The code location's container settings are of no use to the worker, and can be long.
        repository = origin.repository_origin._replace(container_context={})
        args = (ResumeRunArgs if resuming else ExecuteRunArgs)(
            job_origin=origin._replace(repository_origin=repository),
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            # Batch's own count of failed jobs then counts failed runs.
            set_exit_code_on_failure=True,
        )
        *entry, api, verb, text = args.get_command_args()
        command = [*(self.config.entry_point or entry), api, verb]
        packed = base64.b64encode(zlib.compress(serialize_value(args).encode())).decode()
        if runs > 1:
            return ["python", "-m", "batch_gpu.worker", str(runs), str(self.config.idle_seconds), packed]
        if len(text) > LONGEST_PLAIN_COMMAND and not resuming:
            return [*command, "--compressed-input-json", packed]
        return [*command, text]

    def _adopt(self, run: DagsterRun, job_id: str, queue: str) -> None:
        if own_job_id(run.run_id, self._fresh(run).tags) == job_id:
            return
        self._instance.add_run_tags(run.run_id, {JOB_ID_TAG: job_id, RUN_WORKER_ID_TAG: job_id})
        message = (
            f"Found AWS Batch job {job_id} in queue {queue}: it was submitted before, and is this run's."
        )
        self._report(run, message, self._job_metadata(job_id))

    # --- ending ---

    def terminate(self, run_id: str) -> bool:
        """End the run's job, also before it has begun; True if the run is or will be canceled."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if self._is_local(run):
            return self.local.terminate(run_id)
        record = self._instance.get_run_record_by_id(run_id)
        begun = record is not None and record.start_time is not None
        if run.status != DagsterRunStatus.CANCELING:
            self._instance.report_run_canceling(run)
        job_id = self.job_id(run)
        if job_id is not None:
            job = self.api.describe([job_id]).get(job_id)
            if job is not None and job["status"] not in ENDED:
                self.end_job(run, job_id, f"Run {run_id} was canceled in Dagster.")
                if begun:
                    return True  # the worker receives a signal, and reports the end itself
        # There is no worker to report the end, or it has not begun: it will find the run canceled.
        self._instance.report_run_canceled(run, "The run was canceled; it has no worker to report that.")
        return True

    def end_job(self, run: DagsterRun, job_id: str, reason: str) -> None:
        """End a run's job, and write down that this was done."""
        self.api.terminate(job_id, reason)
        self._instance.add_run_tags(run.run_id, {STATUS_TAG: TERMINATED})

    def fail(self, run: DagsterRun, ending: Ending) -> None:
        """Report an unfinished run as failed, with its failure class.

        A failure that cannot pass is not retried: Dagster's tag that announces a retry is taken back.
        """
        if self._fresh(run).is_finished:
            return
        self._instance.add_run_tags(run.run_id, ending.tags())
        self._instance.report_run_failed(run, f"{ending.failure}: {ending.message}")
        if not ending.transient:
            self._instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false"})

    # --- looking after ---

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """The state of a run's worker; one description of all jobs serves a whole monitoring pass.

        Raises:
            AwsUnavailable: AWS throttles or cannot be reached. Dagster takes an error for no answer and asks
                again, whereas any unhealthy answer ends the run.
        """
        if self._is_local(run):
            return self.local.check_run_worker_health(run)
        job_id = self.job_id(run)
        if job_id is None:
            return self._not_found(run, "AWS Batch has no job of this run.")
        job = self.job(run, job_id)
        if job is None:
            missing = f"AWS Batch no longer knows job {job_id}."
            self._require_age(run, missing)
            return self._not_found(run, missing)
        self.note_log_stream(run, job)
        ending = self._ending(run, job)
        if ending is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=job_id)
        if self._fresh(run).is_finished:
            return CheckRunHealthResult(WorkerStatus.SUCCESS, "The run has ended.", run_worker_id=job_id)
        # Of two jobs that a lost answer made, this may be the one whose worker found the run begun.
        other = self.api.find(run.tags[JOB_QUEUE_TAG], run.tags[JOB_NAME_TAG])
        if other is not None and other != job_id:
            self._adopt(run, other, run.tags[JOB_QUEUE_TAG])
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=other)
        self._instance.add_run_tags(run.run_id, ending.tags())
        message = f"{ending.failure}: {ending.message}{self.last_lines(job)}"
        return CheckRunHealthResult(WorkerStatus.FAILED, message, ending.transient, job_id)

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """All that AWS knows of the run's job, for the message of a run that Dagster gives up."""
        if self._is_local(run):
            return self.local.get_run_worker_debug_info(run, include_container_logs)
        job_id = self.job_id(run)
        if job_id is None:
            return "AWS Batch has no job of this run."
        job = self.api.describe([job_id]).get(job_id)
        if job is None:
            return f"AWS Batch no longer knows job {job_id}."
        lines = [
            f"AWS Batch job {job_id}: {job['status']}, {job.get('statusReason') or 'no status reason'}",
            f"Queue: {job['jobQueue']}",
            f"Job definition: {job['jobDefinition']}",
            f"Ended attempts: {len(job.get('attempts') or [])}",
            job_url(self.api.region, job_id),
        ]
        stream = last_container(job).get("logStreamName")
        if stream:
            lines.append(log_url(self.api.region, log_group(job), stream))
        logs = self.last_lines(job) if include_container_logs else ""
        return "\n".join(lines) + logs

    def job(self, run: DagsterRun, job_id: str) -> Job | None:
        """What AWS says of a run's job, not older than half a monitoring interval."""
        return self._board.job(self._instance, job_id)

    def note_log_stream(self, run: DagsterRun, job: Job) -> None:
        """Write down where the worker logs, as soon as AWS knows it: once an attempt."""
        stream = last_container(job).get("logStreamName")
        if not stream or run.tags.get(LOG_STREAM_TAG) == stream:
            return
        self._instance.add_run_tags(run.run_id, {LOG_STREAM_TAG: stream})
        url = MetadataValue.url(log_url(self.api.region, log_group(job), stream))
        self._report(run, "The worker's log is in CloudWatch.", {"Log stream": url})

    def last_lines(self, job: Job) -> str:
        """The worker's last log lines, to append to a message; a sentence if they cannot be read."""
        try:
            lines = self.api.log_lines(job, self.config.log_lines)
        except BatchGpuError as error:
            return f"\nThe worker's log could not be read: {error}"
        return "\nThe worker's last log lines:\n" + "\n".join(lines) if lines else ""

    def _ending(self, run: DagsterRun, job: Job) -> Ending | None:
        if job["status"] in ENDED:
            return ending_of(job)
        if not job.get("attempts"):
            return None
        record = self._instance.get_run_record_by_id(run.run_id)
        started = record.start_time if record else None
        lost = lost_to_reclaim(job, int(started * 1000) if started else None)
        if lost is not None:
            self.api.terminate(str(job["jobId"]), "The run's worker was lost with its machine.")
        return lost

    def _not_found(self, run: DagsterRun, message: str) -> CheckRunHealthResult:
        self._instance.add_run_tags(run.run_id, Ending("worker-lost", True, message).tags())
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, message)

    def job_id(self, run: DagsterRun) -> str | None:
        """The run's job, looked up by its name if a crash came between submitting it and writing it down."""
        known = own_job_id(run.run_id, run.tags)
        if known is not None:
            return known
        tags = self._fresh(run).tags
        known = own_job_id(run.run_id, tags)
        if known is not None or not submission_began(run.run_id, tags):
            return known
        found = self.api.find(tags[JOB_QUEUE_TAG], tags[JOB_NAME_TAG])
        if found is not None:
            self._adopt(run, found, tags[JOB_QUEUE_TAG])
            return found
        self._require_age(run, f"The run has begun, but AWS does not list job {tags[JOB_NAME_TAG]}.")
        return None

    def _require_age(self, run: DagsterRun, missing: str) -> None:
        """What AWS answers about a new job may be older than the job."""
        record = self._instance.get_run_record_by_id(run.run_id)
        if record and record.start_time and get_current_timestamp() - record.start_time < LISTING_GRACE_S:
            raise JobNotListed(f"{missing} The run is too young for that to be believed: ask again.")

    def _is_local(self, run: DagsterRun) -> bool:
        if submission_began(run.run_id, run.tags):
            return False
        return self.config.compute == "local" or launched_locally(run)

    def _fresh(self, run: DagsterRun) -> DagsterRun:
        return self._instance.get_run_by_id(run.run_id) or run

    def _job_metadata(self, job_id: str) -> dict[str, MetadataValue[Any]]:
        url = MetadataValue.url(job_url(self.api.region, job_id))
        return {"Job": MetadataValue.text(job_id), "Console": url}

    def _report(self, run: DagsterRun, message: str, metadata: Mapping[str, MetadataValue[Any]]) -> None:
        self._instance.report_engine_event(message, run, EngineEventData(metadata), cls=self.__class__)


class _Board:
    """What AWS last said of all jobs of unfinished runs, so that a monitoring pass over them asks once."""

    def __init__(self, api: BatchApi) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._asked_at = -math.inf
        self._asked: set[str] = set()
        self._jobs: dict[str, Job] = {}
        self._refusal: AwsUnavailable | None = None

    def job(self, instance: DagsterInstance, job_id: str) -> Job | None:
        """What AWS says of a job; None if it does not know it.

        Raises:
            AwsUnavailable: the same for all runs of a pass, so that a throttling AWS is not asked once a run.
        """
        # Half the interval: every pass sees news, and none asks twice unless it takes that long itself.
        lifetime_s = instance.run_monitoring_poll_interval_seconds / 2
        with self._lock:
            old = time.monotonic() - self._asked_at > lifetime_s
            if self._refusal is not None and not old:
                raise self._refusal
            if old or job_id not in self._asked:
                self._ask(instance, job_id)
            return self._jobs.get(job_id)

    def _ask(self, instance: DagsterInstance, job_id: str) -> None:
        runs = instance.get_runs(RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES))
        known = {own_job_id(run.run_id, run.tags) for run in runs} - {None}
        wanted = {str(each) for each in known} | {job_id}
        self._asked_at, self._refusal = time.monotonic(), None
        try:
            self._jobs = self._api.describe(wanted)
        except AwsUnavailable as refusal:
            self._refusal = refusal
            raise
        self._asked = wanted
