"""How the fake's jobs move on: placed on machines, started, watched, ended, tried again."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from batch_gpu.testing.clock import FakeClock
from batch_gpu.testing.container import Container
from batch_gpu.testing.state import Attempt, Job, Queue


@dataclass(slots=True)
class Scheduler:
    """Queues with their machines, and the jobs in them; not safe to use from several threads.

    Attributes:
        environment, cwd, secrets, stop_grace_s, start_container: as in `FakeBatch`.
        unpullable: images that no machine can pull.
        streams: containers by the names of their log streams.
    """

    queues: Mapping[str, Queue]
    environment: Mapping[str, str]
    cwd: Path | None
    secrets: Mapping[str, str]
    stop_grace_s: float
    start_container: Callable[..., Container]
    clock: FakeClock = field(default_factory=FakeClock)
    jobs: dict[str, Job] = field(default_factory=dict)
    streams: dict[str, Container] = field(default_factory=dict)
    unpullable: set[str] = field(default_factory=set)

    def step(self) -> None:
        """Move every job on as far as it goes now."""
        for job in list(self.jobs.values()):
            self.reclaim(job)
            if job.status == "SUBMITTED":
                job.status = "RUNNABLE"
            elif job.status == "RUNNING":
                self._watch(job)
        for queue in self.queues.values():
            self._place(queue)
        for job in list(self.jobs.values()):
            if job.status == "STARTING":
                self._start(job)

    def reclaim(self, job: Job) -> None:
        """Take the machine of a job away, if its time has come."""
        if job.reclaimed_at_ms is not None and job.reclaimed_at_ms <= self.clock.now_ms():
            job.reclaimed_at_ms = None
            if job.container is not None:
                job.container.kill()
            host = f"Host EC2 (instance i-{job.number:017x}) terminated."
            self.end_attempt(job, host, None, None)

    def _place(self, queue: Queue) -> None:
        machines = queue.machines
        jobs = [job for job in self.jobs.values() if job.queue == queue.name]
        busy = [job for job in jobs if job.status in ("STARTING", "RUNNING")]
        largest = {"GPU": machines.gpus, "VCPU": machines.vcpus, "MEMORY": machines.memory_mib}
        free = Counter({kind: amount * machines.count for kind, amount in largest.items()})
        for job in busy:
            free.subtract(job.demand)
        waiting = [job for job in jobs if job.status == "RUNNABLE"]
        # Within one share a higher priority goes first; the sort keeps the order of submission otherwise.
        waiting.sort(key=lambda job: -int(job.request.get("schedulingPriorityOverride") or 0))
        head = True
        for job in waiting:
            demand = job.demand
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

    def _block(self, queue: Queue, job: Job, reason: str, detail: str) -> None:
        now = self.clock.now_ms()
        job.status_reason = f"{reason} - {detail}"
        job.blocked_since_ms = job.blocked_since_ms or now
        for limit in queue.time_limits:
            if limit.reason == reason and now - job.blocked_since_ms >= limit.max_time_seconds * 1000:
                job.cancelled = True
                self.leave(job, f"Canceled by JobStateTimeLimit action due to reason: {reason}")

    def _start(self, job: Job) -> None:
        now = self.clock.now_ms()
        assert job.placed_ms is not None
        if now - job.placed_ms < self.queues[job.queue].machines.starts_in_s * 1000:
            return
        job.stream = f"{job.definition['jobDefinitionName']}/default/{uuid.uuid4().hex}"
        image = job.properties["image"]
        refused = None
        if len(json.dumps(job.overrides)) > 8192:
            self.end_attempt(job, "Container Overrides length must be at most 8192", None, None)
            return
        if image in self.unpullable:
            refused = f"CannotPullContainerError: Error response from daemon: manifest for {image} not found"
        else:
            container = self.start_container(job.command, self._variables(job), self.cwd, self.clock.now_ms)
            refused = container.start_error
        if refused is not None:
            job.stream = None
            self.end_attempt(job, "Task failed to start", None, refused)
            return
        job.container = self.streams[job.stream] = container
        job.status, job.started_ms = "RUNNING", now

    def _watch(self, job: Job) -> None:
        assert job.container is not None
        assert job.started_ms is not None
        limit_s = job.setting("timeout").get("attemptDurationSeconds")
        late = limit_s is not None and self.clock.now_ms() - job.started_ms > limit_s * 1000
        if late and job.stopping is None:
            job.stopping = "Job attempt duration exceeded timeout"
            job.container.stop(self.stop_grace_s)
        code = job.container.exit_code()
        if code is not None:
            reason = job.stopping or "Essential container in task exited"
            self.end_attempt(job, reason, code, None)

    def leave(self, job: Job, reason: str) -> None:
        """A job is ended from outside, never to be retried."""
        if job.status == "RUNNING" and job.container is not None:
            job.stopping = reason
            job.container.stop(self.stop_grace_s)
        else:
            job.status, job.status_reason = "FAILED", reason
            job.stopped_ms = self.clock.now_ms()

    def end_attempt(self, job: Job, status_reason: str, code: int | None, reason: str | None) -> None:
        """A job's container is gone: it ends, or is tried again."""
        now = self.clock.now_ms()
        began = job.started_ms or job.placed_ms or now
        job.attempts.append(Attempt(began, now, status_reason, code, reason, job.stream or ""))
        job.status_reason, job.exit_code, job.reason = status_reason, code, reason
        final = code == 0 or job.stopping is not None or job.terminated
        if not final and self._retried(job, status_reason, code, reason):
            job.status, job.stream, job.container = "RUNNABLE", None, None
            job.started_ms = job.placed_ms = job.exit_code = job.reason = job.reclaimed_at_ms = None
            return
        job.status = "SUCCEEDED" if code == 0 and job.stopping is None else "FAILED"
        job.stopped_ms = now

    def _retried(self, job: Job, status_reason: str, code: int | None, reason: str | None) -> bool:
        strategy = job.setting("retryStrategy")
        if len(job.attempts) >= strategy.get("attempts", 1):
            return False
        for rule in strategy.get("evaluateOnExit", []):
            seen = {"onStatusReason": status_reason, "onReason": reason or "", "onExitCode": str(code)}
            if all(glob(rule[key], text) for key, text in seen.items() if key in rule):
                return bool(rule["action"].upper() == "RETRY")
        return True

    def _variables(self, job: Job) -> dict[str, str]:
        variables = dict(self.environment)
        for each in job.environment:
            variables[each["name"]] = each["value"]
        for each in job.properties.get("secrets", []):
            variables[each["name"]] = self.secrets[each["valueFrom"]]
        return variables | {
            "AWS_BATCH_JOB_ID": job.job_id,
            "AWS_BATCH_JOB_ATTEMPT": str(len(job.attempts) + 1),
            "AWS_BATCH_JQ_NAME": job.queue,
            "AWS_BATCH_CE_NAME": job.queue,
        }


def glob(pattern: str, text: str) -> bool:
    """AWS's patterns: plain text that may end in an asterisk."""
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text == pattern
