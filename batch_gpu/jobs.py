"""From a run and its configuration to SubmitJob's parameters: pure."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from batch_gpu.compute import ComputeClass
from batch_gpu.config import JobConfig
from batch_gpu.errors import ConfigurationError

JOB_NAME_TAG = "batch_gpu/job_name"
JOB_ID_TAG = "batch_gpu/job_id"
JOB_QUEUE_TAG = "batch_gpu/job_queue"
LOG_STREAM_TAG = "batch_gpu/log_stream"
STATUS_TAG = "batch_gpu/status"
FAILURE_TAG = "batch_gpu/failure"
CAUSE_TAG = ".dagster/batch_gpu/cause"
"""The sentence that belongs to the failure; Dagster's pages hide tags of this prefix."""
# A re-executed run inherits its parent's tags; this stands where the parent's job, log or failure stood.
NONE = "none"
TERMINATED = "TERMINATED"
"""The status tag of a job that the launcher has ended."""
RUN_ID_VARIABLE = "BATCH_GPU_RUN_ID"
"""The run of a job, for code that runs in the container before or without Dagster."""
OUTCOME_TAGS = (JOB_ID_TAG, LOG_STREAM_TAG, STATUS_TAG, FAILURE_TAG, CAUSE_TAG)

DEFAULT_ATTEMPTS = 3
# What ECS, which runs the container, accepts as overrides, written as JSON. Batch itself takes the job and
# lets it fail minutes later ("Container Overrides length must be at most 8192").
LONGEST_OVERRIDES = 8192
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def job_name(prefix: str, run_id: str, resumed: int = 0) -> str:
    """The name by which a run's job is found again: one for the launch, one for each time it is resumed.

    Raises:
        ConfigurationError: the prefix makes it no name that AWS Batch takes.
    """
    name = f"{prefix}-{run_id}-{resumed + 1}"
    if not _JOB_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a Batch job: up to 128 letters, digits, hyphens and underscores, the "
            "first a letter or digit. Correct run_launcher.config.job_name_prefix."
        )
    return name


def own_job_id(run_id: str, tags: Mapping[str, str]) -> str | None:
    """The id of the run's own job, if it is known: not its parent's, whose tags it inherited."""
    job_id = tags.get(JOB_ID_TAG, NONE)
    return job_id if submission_began(run_id, tags) and job_id != NONE else None


def submission_began(run_id: str, tags: Mapping[str, str]) -> bool:
    """Whether a job of this run may exist: the mark is written before the job is submitted."""
    return run_id in tags.get(JOB_NAME_TAG, "")


def submit_request(
    *,
    name: str,
    job: JobConfig,
    job_definition: str,
    command: Sequence[str],
    run_id: str,
    dagster_job: str,
) -> dict[str, Any]:
    """SubmitJob's parameters.

    Args:
        job_definition: as configured, or the revision that was made for this run.

    Raises:
        ConfigurationError: the overrides are longer than ECS takes.
    """
    overrides: dict[str, Any] = {"command": list(command)}
    requirements = {"GPU": job.gpus or None, "VCPU": job.vcpus, "MEMORY": job.memory_mib}
    overrides["resourceRequirements"] = [
        {"type": kind, "value": str(amount)} for kind, amount in requirements.items() if amount is not None
    ]
    environment = {RUN_ID_VARIABLE: run_id, "DAGSTER_RUN_JOB_NAME": dagster_job, **(job.environment or {})}
    overrides["environment"] = [{"name": key, "value": value} for key, value in environment.items()]
    length = len(json.dumps(overrides))
    if length > LONGEST_OVERRIDES:
        raise ConfigurationError(
            f"The job's command and environment are {length} characters long; ECS takes "
            f"{LONGEST_OVERRIDES}. Move the environment into the job definition."
        )
    request: dict[str, Any] = {
        "jobName": name,
        "jobQueue": job.job_queue,
        "jobDefinition": job_definition,
        "containerOverrides": overrides,
        "retryStrategy": retry_strategy(job.attempts or DEFAULT_ATTEMPTS),
        "tags": {"dagster/run_id": run_id, "dagster/job": dagster_job, **(job.aws_tags or {})},
        "propagateTags": True,
    }
    if job.timeout_seconds is not None:
        request["timeout"] = {"attemptDurationSeconds": job.timeout_seconds}
    if job.share_identifier is not None:
        request["shareIdentifier"] = job.share_identifier
    if job.scheduling_priority is not None:
        request["schedulingPriorityOverride"] = job.scheduling_priority
    return request


def retry_strategy(attempts: int) -> dict[str, Any]:
    """Only a reclaimed host is worth another attempt of the same job; whatever matches no rule is retried,
    so the last rule matches everything."""
    return {
        "attempts": attempts,
        "evaluateOnExit": [
            {"onStatusReason": "Host EC2*", "action": "RETRY"},
            {"onReason": "*", "action": "EXIT"},
        ],
    }


def summary(name: str, job: JobConfig, compute: ComputeClass) -> str:
    """What was asked for, as a person reads it."""
    asked = [
        (job.gpus, "GPU"),
        (job.vcpus, "vCPU"),
        (job.memory_mib, "MiB memory"),
        (job.shared_memory_mib, "MiB shared memory"),
        (job.timeout_seconds, "s time limit"),
    ]
    resources = (
        ", ".join(f"{amount} {unit}" for amount, unit in asked if amount) or "as the job definition says"
    )
    return f"AWS Batch job {name} in queue {job.job_queue} ({compute}; {resources})"
