"""The fake without HTTP: it answers requests, and does what a test asks for.

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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from batch_gpu.testing.answers import (
    Answer,
    described,
    described_environment,
    described_queue,
    requirements,
    summary,
)
from batch_gpu.testing.container import KILLED, Container
from batch_gpu.testing.scheduler import Scheduler, glob
from batch_gpu.testing.state import (
    ENDED,
    WAITING,
    ConnectionCut,
    Fault,
    Job,
    Machines,
    Queue,
    RequestError,
    arn,
)

LOG_GROUP = "/aws/batch/job"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


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
        self.queues = {queue.name: queue for queue in queues}
        self.calls: Counter[str] = Counter()
        self.faults: deque[Fault] = deque()
        self.listing_lag_s = 0.0
        """How long ListJobs does not know of a job that was submitted."""
        self.describing_lag_s = 0.0
        """The same of DescribeJobs."""
        self.scheduler = Scheduler(
            self.queues, dict(environment or {}), cwd, dict(secrets or {}), stop_grace_s, start_container
        )
        self.clock = self.scheduler.clock
        self.unpullable = self.scheduler.unpullable
        """Images that no machine can pull."""
        self._lock = threading.RLock()
        self._jobs = self.scheduler.jobs
        self._definitions: dict[str, list[dict[str, Any]]] = {}

    # --- what a test asks for ---

    def jobs(self) -> list[Answer]:
        """All jobs as DescribeJobs describes them, oldest first; not counted as a request."""
        with self._lock:
            return [described(job) for job in self._jobs.values()]

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
        properties.setdefault("resourceRequirements", requirements({"VCPU": 1, "MEMORY": 1024}))
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
            self.scheduler.reclaim(job)

    def kill_container(self, job_id: str) -> None:
        """Kill a running job's container as the kernel does when it takes more memory than it has."""
        with self._lock:
            job = self._jobs[job_id]
            assert job.container is not None, f"job {job_id} is {job.status}"
            job.container.kill()
            reason = "OutOfMemoryError: Container killed due to memory usage"
            self.scheduler.end_attempt(job, "Essential container in task exited", KILLED, reason)

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
        job = Job(
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
        return {"jobs": [described(job) for job in known if job and job.created_ms <= seen_until]}

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
        answer: Answer = {"jobSummaryList": [summary(job) for job in jobs[start:end]]}
        return answer | ({"nextToken": str(end)} if end < len(jobs) else {})

    def _terminate_job(self, request: Mapping[str, Any]) -> Answer:
        job = self._known(request["jobId"])
        if job.status in ENDED:
            return {}
        job.terminated = True
        self.scheduler.leave(job, request["reason"])
        return {}

    def _cancel_job(self, request: Mapping[str, Any]) -> Answer:
        job = self._known(request["jobId"])
        if job.status in WAITING:
            job.cancelled = True
            self.scheduler.leave(job, request["reason"])
        return {}

    def _register_job_definition(self, request: Mapping[str, Any]) -> Answer:
        name = request["jobDefinitionName"]
        if not NAME.fullmatch(name):
            raise RequestError(f"Job definition name should match valid pattern: {name}")
        revisions = self._definitions.setdefault(name, [])
        revision = len(revisions) + 1
        named = {"jobDefinitionArn": arn(f"job-definition/{name}:{revision}"), "revision": revision}
        revisions.append({**request, **named, "status": "ACTIVE"})
        return {"jobDefinitionName": name, **named}

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
        queues = [queue for name, queue in self.queues.items() if name in wanted]
        return {"jobQueues": [described_queue(queue) for queue in queues]}

    def _describe_compute_environments(self, request: Mapping[str, Any]) -> Answer:
        wanted = {each.rpartition("/")[2] for each in request.get("computeEnvironments") or self.queues}
        return {
            "computeEnvironments": [described_environment(name) for name in self.queues if name in wanted]
        }

    def _get_log_events(self, request: Mapping[str, Any]) -> Answer:
        container = self.scheduler.streams.get(request["logStreamName"])
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
            self.scheduler.step()

    # --- what a request names ---

    def _queue(self, name: str) -> Queue:
        queue = self.queues.get(name.rpartition("/")[2])
        if queue is None:
            raise RequestError(f"JobQueue {name} not found.")
        return queue

    def _known(self, job_id: str) -> Job:
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


def _matches(job: Job, wanted: Mapping[str, Any]) -> bool:
    if wanted["name"] != "JOB_NAME":
        raise RequestError(f"The fake knows no filter {wanted['name']}.")
    return any(glob(pattern.lower(), job.name.lower()) for pattern in wanted["values"])
