"""The fake's state machine, without HTTP: queues, machines, jobs, attempts, and faults on request.

It models these parts of AWS Batch, as its API reference and user guide describe them:

* SubmitJob (names, the 30 KiB limit, share identifiers, retry strategies, time limits ≥ 60 s), DescribeJobs
  (≤ 100 ids, unknown ones left out), ListJobs (by status, or by name in any status, newest first, in pages),
  TerminateJob, CancelJob, RegisterJobDefinition (revisions), DescribeJobDefinitions, DescribeJobQueues,
  DescribeComputeEnvironments, and CloudWatch's GetLogEvents for the containers' output.
* States SUBMITTED → RUNNABLE → STARTING → RUNNING → SUCCEEDED or FAILED; first in, first out in a queue,
  but for share priorities; as many jobs at a time as the queue's machines hold GPUs, vCPUs and MiB.
* Retries with `evaluateOnExit` in order, ≤ 5 conditions, no match means retry; a job that was terminated or
  ran out of time is not retried.
* A job too large for every machine of its queue waits with a MISCONFIGURATION status reason, one that finds
  no machine at the head of its queue with a CAPACITY one, and one at the head of a queue that a test blocks
  with the reason that the test gives; a queue's state time limits cancel them.
* The container's command, environment (overrides win; AWS_BATCH_JOB_ID and its like) and secrets; exit codes,
  "OutOfMemoryError" containers, images that cannot be pulled, a host that is taken away, SIGTERM and SIGKILL.
* ECS's limit of 8192 characters of overrides, which fails the job, not the request.

It does not model array, multi-node and dependent jobs, EKS, Fargate, `Ref::` parameters, real images and
their isolation (the command runs in this machine's file system, with all its CPUs and GPUs), memory limits
(`kill_container` plays them), fair shares beyond the priority within one share, job expiry, IAM beyond the
faults that a test requests, tags on resources other than jobs, CreateJobQueue and CreateComputeEnvironment.
"""

import json
import re
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from batch_gpu.testing.clock import FakeClock
from batch_gpu.testing.container import KILLED, Container

Answer = dict[str, Any]
ENDED = ("SUCCEEDED", "FAILED")
WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
REGION, ACCOUNT = "ap-northeast-2", "123456789012"
LOG_GROUP = "/aws/batch/job"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


@dataclass(frozen=True, slots=True)
class Machines:
    """A compute environment: what its largest machine holds, and how many machines it may have."""

    gpus: int = 0
    vcpus: int = 64
    memory_mib: int = 256_000
    count: int = 1
    starts_in_s: float = 0.0
    """How long a container takes from its machine to its first process."""


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """One of a queue's `jobStateTimeLimitActions`."""

    reason: str
    max_time_seconds: int


@dataclass(slots=True)
class Queue:
    """A job queue with one compute environment."""

    name: str
    machines: Machines = Machines()
    time_limits: Sequence[TimeLimit] = ()
    fair_share: bool = False
    blocked: str | None = None
    """The status reason of the job at its head, none of which starts."""


@dataclass(slots=True)
class Fault:
    """What happens to the next requests of one operation in place of an answer.

    Attributes:
        error: the error's code; None cuts the connection.
        times: how many requests it hits; None for all until it is removed.
        after: let the request take effect first, so that only its answer is lost.
        skip: number of requests to let pass first.
    """

    operation: str
    error: str | None = "TooManyRequestsException"
    message: str = "Too Many Requests"
    status: int = 429
    times: int | None = 1
    after: bool = False
    skip: int = 0


class RequestError(Exception):
    """An error answer."""

    def __init__(self, message: str, code: str = "ClientException", status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class ConnectionCut(Exception):
    """No answer at all."""


@dataclass(slots=True)
class _Attempt:
    started_ms: int
    stopped_ms: int
    status_reason: str
    exit_code: int | None
    reason: str | None
    stream: str


@dataclass(slots=True)
class _Job:
    job_id: str
    number: int
    name: str
    queue: str
    definition: Mapping[str, Any]
    request: Mapping[str, Any]
    created_ms: int
    status: str = "SUBMITTED"
    status_reason: str | None = None
    blocked_since_ms: int | None = None
    placed_ms: int | None = None
    started_ms: int | None = None
    stopped_ms: int | None = None
    stream: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    container: Container | None = None
    stopping: tuple[str, bool] | None = None
    reclaimed_at_ms: int | None = None
    terminated: bool = False
    cancelled: bool = False
    attempts: list[_Attempt] = field(default_factory=list)

    @property
    def arn(self) -> str:
        return _arn(f"job/{self.job_id}")


class FakeBatch:
    """All of the fake's state. Every method may be called from any thread; a server's thread moves it on.

    Args:
        environment: what each container's environment begins with, as an image's would.
        cwd: the directory that commands run in.
        secrets: what the ARNs of `secrets` stand for.
        stop_grace_s: seconds (of real time) between SIGTERM and SIGKILL; ECS's default is 30.
        start_container: what executes a command; a process of this machine unless a test plays the workers.
    """

    def __init__(
        self,
        queues: Iterable[Queue],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        secrets: Mapping[str, str] | None = None,
        stop_grace_s: float = 30.0,
        start_container: Callable[..., Container] = Container,
    ) -> None:
        self.clock = FakeClock()
        self.queues = {queue.name: queue for queue in queues}
        self.calls: Counter[str] = Counter()
        self.faults: deque[Fault] = deque()
        self.listing_lag_s = 0.0
        """How long ListJobs does not know of a job that was submitted."""
        self.describing_lag_s = 0.0
        """The same of DescribeJobs."""
        self.unpullable: set[str] = set()
        """Images that no machine can pull."""
        self._environment = dict(environment or {})
        self._cwd = cwd
        self._secrets = dict(secrets or {})
        self.stop_grace_s = stop_grace_s
        self._start_container = start_container
        self._lock = threading.RLock()
        self._jobs: dict[str, _Job] = {}
        self._definitions: dict[str, list[dict[str, Any]]] = {}
        self._streams: dict[str, Container] = {}

    # --- what a test asks for ---

    def jobs(self) -> list[Answer]:
        """All jobs as DescribeJobs describes them, oldest first; not counted as a request."""
        with self._lock:
            return [self._described(job) for job in self._jobs.values()]

    def log_lines(self, job_id: str) -> list[str]:
        """What the job's latest container wrote; not counted as a request."""
        with self._lock:
            container = self._jobs[job_id].container
            return [text for _, text in container.lines] if container else []

    def pid(self, job_id: str) -> int | None:
        """The process of a running job's container."""
        with self._lock:
            container = self._jobs[job_id].container
            return container.pid if container else None

    def define_job(self, name: str, **container: Any) -> str:
        """Register a job definition of one container, and return its ARN; not counted as a request."""
        properties = {"image": "fake/image:1", **container}
        properties.setdefault("resourceRequirements", _requirements({"VCPU": 1, "MEMORY": 1024}))
        request = {"jobDefinitionName": name, "type": "container", "containerProperties": properties}
        with self._lock:
            return str(self._register_job_definition(request)["jobDefinitionArn"])

    def set_machines(self, queue: str, machines: Machines) -> None:
        """Give a queue other machines; none are taken from running jobs."""
        with self._lock:
            self.queues[queue].machines = machines

    def reclaim_host(self, job_id: str, after_s: float = 0.0) -> None:
        """Take the machine of a starting or running job away, as EC2 does with spot machines.

        Args:
            after_s: by the fake's clock; AWS gives two minutes' notice, often less.
        """
        with self._lock:
            job = self._jobs[job_id]
            job.reclaimed_at_ms = self.clock.now_ms() + round(after_s * 1000)
            self._reclaim(job)

    def _reclaim(self, job: _Job) -> None:
        if job.reclaimed_at_ms is not None and job.reclaimed_at_ms <= self.clock.now_ms():
            job.reclaimed_at_ms = None
            if job.container is not None:
                job.container.kill()
            host = f"Host EC2 (instance i-{job.number:017x}) terminated."
            self._end_attempt(job, host, None, None)

    def kill_container(self, job_id: str) -> None:
        """Kill a running job's container as the kernel does when it takes more memory than it has."""
        with self._lock:
            job = self._jobs[job_id]
            assert job.container is not None, f"job {job_id} is {job.status}"
            job.container.kill()
            reason = "OutOfMemoryError: Container killed due to memory usage"
            self._end_attempt(job, "Essential container in task exited", KILLED, reason)

    def kill_all(self) -> None:
        """End every process; nothing starts any more."""
        with self._lock:
            for job in self._jobs.values():
                if job.container is not None:
                    job.container.kill()
            self._jobs.clear()

    # --- requests ---

    def handle(self, operation: str, request: Mapping[str, Any]) -> Answer:
        """Answer one request.

        Raises:
            RequestError, ConnectionCut
        """
        method = getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower(), None)
        with self._lock:
            self.calls[operation] += 1
            fault = self._fault(operation)
            if fault is not None and not fault.after:
                raise _raised(fault)
            if method is None:
                raise RequestError(f"The fake does not know {operation}.", "UnknownOperationException", 404)
            answer: Answer = method(request)
            if fault is not None:
                raise _raised(fault)
            return answer

    def _fault(self, operation: str) -> Fault | None:
        for fault in list(self.faults):
            if fault.operation != operation:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                return None
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
            return fault
        return None

    def _submit_job(self, request: Mapping[str, Any]) -> Answer:
        size_kib = len(json.dumps(request)) / 1024
        if size_kib > 30:
            raise RequestError(f"Job size must be less than 30 KiB, got {size_kib:.0f} KiB")
        name = request["jobName"]
        if not NAME.fullmatch(name):
            raise RequestError(f"Job name should match valid pattern: {name}")
        queue = self._queue(request["jobQueue"])
        if queue.fair_share != ("shareIdentifier" in request):
            wanted = "requires" if queue.fair_share else "does not take"
            raise RequestError(f"Job queue {queue.name} {wanted} a share identifier.")
        limit = (request.get("timeout") or {}).get("attemptDurationSeconds")
        if limit is not None and limit < 60:
            raise RequestError("Error executing request, Exception : timeout must be at least 60 seconds.")
        strategy = request.get("retryStrategy") or {}
        if not 1 <= strategy.get("attempts", 1) <= 10 or len(strategy.get("evaluateOnExit", [])) > 5:
            raise RequestError("RetryStrategy is not valid: 1 to 10 attempts, up to 5 conditions.")
        definition = self._definition(request["jobDefinition"])
        job = _Job(
            job_id=str(uuid.uuid4()),
            number=len(self._jobs) + 1,
            name=name,
            queue=queue.name,
            definition=definition,
            request=dict(request),
            created_ms=self.clock.now_ms(),
        )
        self._jobs[job.job_id] = job
        return {"jobArn": job.arn, "jobId": job.job_id, "jobName": name}

    def _describe_jobs(self, request: Mapping[str, Any]) -> Answer:
        wanted = request["jobs"]
        if len(wanted) > 100:
            raise RequestError("Cannot describe more than 100 jobs.")
        known = [self._jobs.get(each.rpartition("/")[2]) for each in wanted]
        seen_until = self.clock.now_ms() - int(self.describing_lag_s * 1000)
        return {"jobs": [self._described(job) for job in known if job and job.created_ms <= seen_until]}

    def _list_jobs(self, request: Mapping[str, Any]) -> Answer:
        queue = self._queue(request["jobQueue"])
        filters = request.get("filters") or []
        if len(filters) > 1:
            raise RequestError("Only one filter can be used at a time.")
        seen_until = self.clock.now_ms() - int(self.listing_lag_s * 1000)
        jobs = [
            job for job in self._jobs.values() if job.queue == queue.name and job.created_ms <= seen_until
        ]
        if filters:
            jobs = [job for job in jobs if _matches(job, filters[0])]
        else:
            status = request.get("jobStatus", "RUNNING")
            jobs = [job for job in jobs if job.status == status]
        jobs.sort(key=lambda job: job.number, reverse=True)
        start = int(request.get("nextToken") or 0)
        end = start + int(request.get("maxResults") or 100)
        answer: Answer = {"jobSummaryList": [self._summary(job) for job in jobs[start:end]]}
        return answer | ({"nextToken": str(end)} if end < len(jobs) else {})

    def _terminate_job(self, request: Mapping[str, Any]) -> Answer:
        job = self._known(request["jobId"])
        if job.status in ENDED:
            return {}
        job.terminated = True
        self._leave(job, request["reason"])
        return {}

    def _cancel_job(self, request: Mapping[str, Any]) -> Answer:
        job = self._known(request["jobId"])
        if job.status in WAITING:
            job.cancelled = True
            self._leave(job, request["reason"])
        return {}

    def _register_job_definition(self, request: Mapping[str, Any]) -> Answer:
        name = request["jobDefinitionName"]
        if not NAME.fullmatch(name):
            raise RequestError(f"Job definition name should match valid pattern: {name}")
        revisions = self._definitions.setdefault(name, [])
        revision = len(revisions) + 1
        arn = _arn(f"job-definition/{name}:{revision}")
        stated = {"jobDefinitionArn": arn, "revision": revision, "status": "ACTIVE"}
        revisions.append({**request, **stated})
        return {"jobDefinitionName": name, "jobDefinitionArn": arn, "revision": revision}

    def _describe_job_definitions(self, request: Mapping[str, Any]) -> Answer:
        every = [each for revisions in self._definitions.values() for each in revisions]
        if wanted := request.get("jobDefinitions"):
            short = {each.rpartition("/")[2] for each in wanted}
            names = ("{jobDefinitionName}", "{jobDefinitionName}:{revision}")
            every = [each for each in every if short & {form.format(**each) for form in names}]
        if name := request.get("jobDefinitionName"):
            every = [each for each in every if each["jobDefinitionName"] == name]
        if status := request.get("status"):
            every = [each for each in every if each["status"] == status]
        # At most 100 revisions in an answer.
        start = int(request.get("nextToken") or 0)
        end = start + min(int(request.get("maxResults") or 100), 100)
        return {"jobDefinitions": every[start:end]} | ({"nextToken": str(end)} if end < len(every) else {})

    def _describe_job_queues(self, request: Mapping[str, Any]) -> Answer:
        wanted = {each.rpartition("/")[2] for each in request.get("jobQueues") or self.queues}
        return {"jobQueues": [_queue_detail(queue) for name, queue in self.queues.items() if name in wanted]}

    def _describe_compute_environments(self, request: Mapping[str, Any]) -> Answer:
        wanted = {each.rpartition("/")[2] for each in request.get("computeEnvironments") or self.queues}
        return {
            "computeEnvironments": [
                {
                    "computeEnvironmentName": name,
                    "computeEnvironmentArn": _arn(f"compute-environment/{name}"),
                    "type": "MANAGED",
                    "state": "ENABLED",
                    "status": "VALID",
                }
                for name in self.queues
                if name in wanted
            ]
        }

    def _get_log_events(self, request: Mapping[str, Any]) -> Answer:
        container = self._streams.get(request["logStreamName"])
        if container is None or request.get("logGroupName") != LOG_GROUP:
            raise RequestError("The specified log stream does not exist.", "ResourceNotFoundException")
        lines = list(container.lines)
        count = int(request.get("limit") or 10_000)
        lines = lines[:count] if request.get("startFromHead") else lines[-count:]
        events = [{"timestamp": at, "message": text, "ingestionTime": at} for at, text in lines]
        return {"events": events, "nextForwardToken": "f/0", "nextBackwardToken": "b/0"}

    # --- time passes ---

    def step(self) -> None:
        """Move every job on as far as it goes now."""
        with self._lock:
            for job in list(self._jobs.values()):
                self._reclaim(job)
                if job.status == "SUBMITTED":
                    job.status = "RUNNABLE"
                elif job.status == "RUNNING":
                    self._watch(job)
            for queue in self.queues.values():
                self._place(queue)
            for job in list(self._jobs.values()):
                if job.status == "STARTING":
                    self._start(job)

    def _place(self, queue: Queue) -> None:
        machines = queue.machines
        jobs = [job for job in self._jobs.values() if job.queue == queue.name]
        busy = [job for job in jobs if job.status in ("STARTING", "RUNNING")]
        free = Counter({"GPU": machines.gpus, "VCPU": machines.vcpus, "MEMORY": machines.memory_mib})
        free = Counter({kind: amount * machines.count for kind, amount in free.items()})
        for job in busy:
            free.subtract(_demand(job))
        waiting = [job for job in jobs if job.status == "RUNNABLE"]
        # Within one share a higher priority goes first; the sort keeps the order of submission otherwise.
        waiting.sort(key=lambda job: -int(job.request.get("schedulingPriorityOverride") or 0))
        head = True
        for job in waiting:
            demand = _demand(job)
            largest = {"GPU": machines.gpus, "VCPU": machines.vcpus, "MEMORY": machines.memory_mib}
            if queue.blocked:
                if head:
                    reason, _, detail = queue.blocked.partition(" - ")
                    self._block(queue, job, reason, detail)
            elif machines.count and any(demand[kind] > largest[kind] for kind in largest):
                self._block(
                    queue, job, "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT", "no machine is large enough"
                )
            elif all(demand[kind] <= free[kind] for kind in largest):
                free.subtract(demand)
                job.status, job.status_reason, job.blocked_since_ms = "STARTING", None, None
                job.placed_ms = self.clock.now_ms()
            else:
                if head and not busy:
                    self._block(queue, job, "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY", "no machine to be had")
                break  # first in, first out: what stands behind the head waits for it
            head = False

    def _block(self, queue: Queue, job: _Job, reason: str, detail: str) -> None:
        now = self.clock.now_ms()
        job.status_reason = f"{reason} - {detail}"
        job.blocked_since_ms = job.blocked_since_ms or now
        for limit in queue.time_limits:
            if limit.reason == reason and now - job.blocked_since_ms >= limit.max_time_seconds * 1000:
                job.cancelled = True
                self._leave(job, f"Canceled by JobStateTimeLimit action due to reason: {reason}")

    def _start(self, job: _Job) -> None:
        now = self.clock.now_ms()
        assert job.placed_ms is not None
        if now - job.placed_ms < self.queues[job.queue].machines.starts_in_s * 1000:
            return
        job.stream = f"{job.definition['jobDefinitionName']}/default/{uuid.uuid4().hex}"
        image = job.definition["containerProperties"]["image"]
        overrides = job.request.get("containerOverrides") or {}
        refused = None
        if len(json.dumps(overrides)) > 8192:
            self._end_attempt(job, "Container Overrides length must be at most 8192", None, None)
            return
        if image in self.unpullable:
            refused = f"CannotPullContainerError: Error response from daemon: manifest for {image} not found"
        else:
            container = self._start_container(
                self._command(job), self._variables(job), self._cwd, self.clock.now_ms
            )
            refused = container.start_error
        if refused is not None:
            job.stream = None
            self._end_attempt(job, "Task failed to start", None, refused)
            return
        job.container = self._streams[job.stream] = container
        job.status, job.started_ms = "RUNNING", now

    def _watch(self, job: _Job) -> None:
        assert job.container is not None
        assert job.started_ms is not None
        timeout = job.request.get("timeout") or job.definition.get("timeout") or {}
        limit_s = timeout.get("attemptDurationSeconds")
        late = limit_s is not None and self.clock.now_ms() - job.started_ms > limit_s * 1000
        if late and job.stopping is None:
            job.stopping = ("Job attempt duration exceeded timeout", False)
            job.container.stop(self.stop_grace_s)
        code = job.container.exit_code()
        if code is not None:
            reason = job.stopping[0] if job.stopping else "Essential container in task exited"
            self._end_attempt(job, reason, code, None)

    def _leave(self, job: _Job, reason: str) -> None:
        """A job is ended from outside, never to be retried."""
        if job.status == "RUNNING" and job.container is not None:
            job.stopping = (reason, False)
            job.container.stop(self.stop_grace_s)
        else:
            job.status, job.status_reason = "FAILED", reason
            job.stopped_ms = self.clock.now_ms()

    def _end_attempt(self, job: _Job, status_reason: str, code: int | None, reason: str | None) -> None:
        now = self.clock.now_ms()
        began = job.started_ms or job.placed_ms or now
        job.attempts.append(_Attempt(began, now, status_reason, code, reason, job.stream or ""))
        job.status_reason, job.exit_code, job.reason = status_reason, code, reason
        final = code == 0 or job.stopping is not None or job.terminated
        if not final and self._retried(job, status_reason, code, reason):
            job.status, job.stream, job.container = "RUNNABLE", None, None
            job.started_ms = job.placed_ms = job.exit_code = job.reason = job.reclaimed_at_ms = None
            return
        job.status = "SUCCEEDED" if code == 0 and job.stopping is None else "FAILED"
        job.stopped_ms = now

    def _retried(self, job: _Job, status_reason: str, code: int | None, reason: str | None) -> bool:
        strategy = job.request.get("retryStrategy") or job.definition.get("retryStrategy") or {}
        if len(job.attempts) >= strategy.get("attempts", 1):
            return False
        for rule in strategy.get("evaluateOnExit", []):
            seen = {"onStatusReason": status_reason, "onReason": reason or "", "onExitCode": str(code)}
            if all(_glob(rule[key], text) for key, text in seen.items() if key in rule):
                return bool(rule["action"].upper() == "RETRY")
        return True

    def _command(self, job: _Job) -> list[str]:
        overrides = job.request.get("containerOverrides") or {}
        return list(overrides.get("command") or job.definition["containerProperties"].get("command") or [])

    def _variables(self, job: _Job) -> dict[str, str]:
        properties = job.definition["containerProperties"]
        overrides = job.request.get("containerOverrides") or {}
        variables = dict(self._environment)
        for each in [*properties.get("environment", []), *overrides.get("environment", [])]:
            variables[each["name"]] = each["value"]
        for each in properties.get("secrets", []):
            variables[each["name"]] = self._secrets[each["valueFrom"]]
        return variables | {
            "AWS_BATCH_JOB_ID": job.job_id,
            "AWS_BATCH_JOB_ATTEMPT": str(len(job.attempts) + 1),
            "AWS_BATCH_JQ_NAME": job.queue,
            "AWS_BATCH_CE_NAME": job.queue,
        }

    # --- answers ---

    def _described(self, job: _Job) -> Answer:
        properties = job.definition["containerProperties"]
        overrides = job.request.get("containerOverrides") or {}
        environment = [*properties.get("environment", []), *overrides.get("environment", [])]
        container = {
            **{key: value for key, value in properties.items() if key != "image"},
            "image": properties["image"],
            "command": self._command(job),
            "environment": environment,
            "resourceRequirements": _requirements(_demand(job)),
            **_present(logStreamName=job.stream, exitCode=job.exit_code, reason=job.reason),
        }
        return {
            "jobArn": job.arn,
            "jobId": job.job_id,
            "jobName": job.name,
            "jobQueue": _arn(f"job-queue/{job.queue}"),
            "jobDefinition": job.definition["jobDefinitionArn"],
            "status": job.status,
            "createdAt": job.created_ms,
            "attempts": [_attempt_detail(each) for each in job.attempts],
            "container": container,
            "isTerminated": job.terminated,
            "isCancelled": job.cancelled,
            "tags": job.request.get("tags") or {},
            **_present(
                statusReason=job.status_reason,
                startedAt=job.started_ms,
                stoppedAt=job.stopped_ms,
                timeout=job.request.get("timeout"),
                retryStrategy=job.request.get("retryStrategy"),
                shareIdentifier=job.request.get("shareIdentifier"),
                schedulingPriority=job.request.get("schedulingPriorityOverride"),
            ),
        }

    def _summary(self, job: _Job) -> Answer:
        kept = ("jobArn", "jobId", "jobName", "createdAt", "status", "statusReason", "startedAt", "stoppedAt")
        detail = self._described(job)
        return {key: detail[key] for key in kept if key in detail}

    def _queue(self, name: str) -> Queue:
        queue = self.queues.get(name.rpartition("/")[2])
        if queue is None:
            raise RequestError(f"JobQueue {name} not found.")
        return queue

    def _known(self, job_id: str) -> _Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise RequestError(f"Job {job_id} not found.")
        return job

    def _definition(self, wanted: str) -> Mapping[str, Any]:
        name, _, revision = wanted.rpartition("/")[2].partition(":")
        revisions = self._definitions.get(name, [])
        if not revisions or (revision and not 1 <= int(revision) <= len(revisions)):
            raise RequestError(f"JobDefinition {wanted} not found.")
        return revisions[int(revision) - 1] if revision else revisions[-1]


def _raised(fault: Fault) -> Exception:
    if fault.error is None:
        return ConnectionCut()
    return RequestError(fault.message, fault.error, fault.status)


def _matches(job: _Job, wanted: Mapping[str, Any]) -> bool:
    if wanted["name"] != "JOB_NAME":
        raise RequestError(f"The fake knows no filter {wanted['name']}.")
    return any(_glob(pattern.lower(), job.name.lower()) for pattern in wanted["values"])


def _glob(pattern: str, text: str) -> bool:
    """AWS's patterns: plain text that may end in an asterisk."""
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text == pattern


def _demand(job: _Job) -> Counter[str]:
    properties = job.definition["containerProperties"]
    overrides = job.request.get("containerOverrides") or {}
    stated = [*properties.get("resourceRequirements", []), *overrides.get("resourceRequirements", [])]
    return Counter({each["type"]: int(float(each["value"])) for each in stated})


def _requirements(amounts: Mapping[str, int]) -> list[Answer]:
    return [{"type": kind, "value": str(amount)} for kind, amount in amounts.items()]


def _attempt_detail(attempt: _Attempt) -> Answer:
    stream, reason = attempt.stream or None, attempt.reason
    return {
        "startedAt": attempt.started_ms,
        "stoppedAt": attempt.stopped_ms,
        "statusReason": attempt.status_reason,
        "container": _present(exitCode=attempt.exit_code, reason=reason, logStreamName=stream),
    }


def _queue_detail(queue: Queue) -> Answer:
    state: Literal["RUNNABLE"] = "RUNNABLE"
    return {
        "jobQueueName": queue.name,
        "jobQueueArn": _arn(f"job-queue/{queue.name}"),
        "state": "ENABLED",
        "status": "VALID",
        "priority": 1,
        "computeEnvironmentOrder": [
            {"order": 1, "computeEnvironment": _arn(f"compute-environment/{queue.name}")}
        ],
        "jobStateTimeLimitActions": [
            {
                "reason": each.reason,
                "state": state,
                "maxTimeSeconds": each.max_time_seconds,
                "action": "CANCEL",
            }
            for each in queue.time_limits
        ],
    }


def _present(**values: Any) -> Answer:
    return {key: value for key, value in values.items() if value is not None}


def _arn(resource: str) -> str:
    return f"arn:aws:batch:{REGION}:{ACCOUNT}:{resource}"
