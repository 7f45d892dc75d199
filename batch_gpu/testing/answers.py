"""What the fake says of its jobs and queues, in the shapes of AWS Batch's answers."""

from collections.abc import Mapping
from typing import Any

from batch_gpu.testing.state import Attempt, Job, Queue, arn

Answer = dict[str, Any]


def described(job: Job) -> Answer:
    """A job as DescribeJobs has it."""
    container = {
        **job.properties,
        "command": job.command,
        "environment": job.environment,
        "resourceRequirements": requirements(job.demand),
        **_present(logStreamName=job.stream, exitCode=job.exit_code, reason=job.reason),
    }
    return {
        "jobArn": job.arn,
        "jobId": job.job_id,
        "jobName": job.name,
        "jobQueue": arn(f"job-queue/{job.queue}"),
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


def summary(job: Job) -> Answer:
    """A job as ListJobs has it."""
    kept = ("jobArn", "jobId", "jobName", "createdAt", "status", "statusReason", "startedAt", "stoppedAt")
    detail = described(job)
    return {key: detail[key] for key in kept if key in detail}


def described_queue(queue: Queue) -> Answer:
    """A queue as DescribeJobQueues has it."""
    return {
        "jobQueueName": queue.name,
        "jobQueueArn": arn(f"job-queue/{queue.name}"),
        "state": "ENABLED",
        "status": "VALID",
        "priority": 1,
        "computeEnvironmentOrder": [
            {"order": 1, "computeEnvironment": arn(f"compute-environment/{queue.name}")}
        ],
        "jobStateTimeLimitActions": [
            {
                "reason": each.reason,
                "state": "RUNNABLE",
                "maxTimeSeconds": each.max_time_seconds,
                "action": "CANCEL",
            }
            for each in queue.time_limits
        ],
    }


def described_environment(name: str) -> Answer:
    """A compute environment as DescribeComputeEnvironments has it."""
    return {
        "computeEnvironmentName": name,
        "computeEnvironmentArn": arn(f"compute-environment/{name}"),
        "type": "MANAGED",
        "state": "ENABLED",
        "status": "VALID",
    }


def requirements(amounts: Mapping[str, int]) -> list[Answer]:
    """Amounts of GPU, VCPU and MEMORY as a job definition has them."""
    return [{"type": kind, "value": str(amount)} for kind, amount in amounts.items()]


def _attempt_detail(attempt: Attempt) -> Answer:
    stream, reason = attempt.stream or None, attempt.reason
    return {
        "startedAt": attempt.started_ms,
        "stoppedAt": attempt.stopped_ms,
        "statusReason": attempt.status_reason,
        "container": _present(exitCode=attempt.exit_code, reason=reason, logStreamName=stream),
    }


def _present(**values: Any) -> Answer:
    return {key: value for key, value in values.items() if value is not None}
