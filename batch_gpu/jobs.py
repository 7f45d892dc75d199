"""From a run and its configuration to SubmitJob's parameters: pure."""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from batch_gpu.compute import ComputeClass
from batch_gpu.config import JobConfig, merged
from batch_gpu.errors import ConfigurationError

JOB_NAME_TAG = ".dagster/batch_gpu.job_name"
JOB_ID_TAG = "batch_gpu/job_id"
JOB_QUEUE_TAG = "batch_gpu/job_queue"
LOG_STREAM_TAG = "batch_gpu/log_stream"
STATUS_TAG = ".dagster/batch_gpu.status"
STATUS_SINCE_TAG = ".dagster/batch_gpu.status_since"
"""When the status tag was written, Unix time in s."""
CANCELLED_TAG = ".dagster/batch_gpu.cancelled"
"""On a run that is to be ended, written before anything ends it: its own id, because later runs inherit its
tags. Nothing launches such a run."""
FAILURE_TAG = "batch_gpu/failure"
CAUSE_TAG = ".dagster/batch_gpu.cause"
"""The sentence that belongs to the failure. Dagster's pages hide tags with the prefix `.dagster/`."""
RECLAIMED_TAG = ".dagster/batch_gpu.reclaimed"
"""`true` where the machine was taken away, which the run's work did not cause."""
JOINED_TAG = ".dagster/batch_gpu.joined"
"""On a run that the job of an earlier run executes: its own id."""
IDLE_TAG = ".dagster/batch_gpu.idle"
"""On a run that has ended: `true` while its worker waits for another one."""
WORK_KEY_TAG = ".dagster/batch_gpu.work_key"
"""Equal on runs that one job may execute, where a job may execute several."""
# A re-executed run inherits its parent's tags; this stands where the parent's job, log or failure stood.
NONE = "none"
TERMINATED = "TERMINATED"
"""The status tag of a job that the launcher has ended."""
RUN_ID_VARIABLE = "BATCH_GPU_RUN_ID"
"""The run of a job, for code that runs in the container before or without Dagster."""
DAGSTER_JOB_VARIABLE = "DAGSTER_RUN_JOB_NAME"
"""The Dagster job of that run; Dagster's own launchers set it, too."""
JOB_ID_VARIABLE = "AWS_BATCH_JOB_ID"
"""AWS Batch sets it in each container."""
OUTCOME_TAGS = (JOB_ID_TAG, LOG_STREAM_TAG, STATUS_TAG, FAILURE_TAG, CAUSE_TAG, RECLAIMED_TAG, IDLE_TAG)

DEFAULT_ATTEMPTS = 3
# ECS, which runs the container, takes overrides of 8192 characters as JSON (ECS API reference, "RunTask").
# Batch accepts longer ones and lets the job fail minutes later ("Container Overrides length must be at most
# 8192"). Batch adds variables of its own, so that others met the limit at 7,680; this stays below that.
LONGEST_OVERRIDES = 7500
# What a tag of AWS takes; other characters become underscores (Batch user guide, "Tag restrictions").
_NOT_IN_A_TAG = re.compile(r"[^\w .:/=+\-@]")
_LONGEST_TAG = 256
# What a job's tags and environment say of its run alone.
_OF_THE_RUN = {RUN_ID_VARIABLE, DAGSTER_JOB_VARIABLE, "dagster/run_id", "dagster/job"}
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


def is_cancelled(run_id: str, tags: Mapping[str, str]) -> bool:
    """Whether somebody has ordered to end this run, however it ends."""
    return tags.get(CANCELLED_TAG) == run_id


def own_job_id(run_id: str, tags: Mapping[str, str]) -> str | None:
    """The id of the run's own job, if it is known: not its parent's, whose tags it inherited."""
    job_id = tags.get(JOB_ID_TAG, NONE)
    return job_id if submission_began(run_id, tags) and job_id != NONE else None


def has_joined(run_id: str, tags: Mapping[str, str]) -> bool:
    """Whether a run has no job of its own, but is executed by that of an earlier run."""
    return tags.get(JOINED_TAG) == run_id


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
    run_tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """SubmitJob's parameters.

    Args:
        job_definition: as configured, or the revision that was made for this run.
        run_tags: the run's tags that become tags of the job.

    Raises:
        ConfigurationError: the overrides are longer than ECS takes.
    """
    overrides: dict[str, Any] = {"command": list(command)}
    requirements = {"GPU": job.gpus or None, "VCPU": job.vcpus, "MEMORY": job.memory_mib}
    overrides["resourceRequirements"] = [
        {"type": kind, "value": str(amount)} for kind, amount in requirements.items() if amount is not None
    ]
    environment = {RUN_ID_VARIABLE: run_id, DAGSTER_JOB_VARIABLE: dagster_job, **job.environment}
    overrides["environment"] = [{"name": key, "value": value} for key, value in environment.items()]
    request: dict[str, Any] = {
        "jobName": name,
        "jobQueue": job.job_queue,
        "jobDefinition": job_definition,
        "containerOverrides": overrides,
        "retryStrategy": retry_strategy(job.attempts or DEFAULT_ATTEMPTS),
        "tags": {
            **{key: _NOT_IN_A_TAG.sub("_", value)[:_LONGEST_TAG] for key, value in (run_tags or {}).items()},
            **job.aws_tags,
            "dagster/run_id": run_id,
            "dagster/job": dagster_job,
        },
        "propagateTags": True,
    }
    if job.timeout_seconds is not None:
        request["timeout"] = {"attemptDurationSeconds": job.timeout_seconds}
    if job.share_identifier is not None:
        request["shareIdentifier"] = job.share_identifier
    if job.scheduling_priority is not None:
        request["schedulingPriorityOverride"] = job.scheduling_priority
    request = merged(request, job.submit_job)
    length = len(json.dumps(request["containerOverrides"]))
    if length > LONGEST_OVERRIDES:
        raise ConfigurationError(
            f"The job's command and environment are {length} characters long. ECS takes 8192 with what AWS "
            f"Batch adds, so at most {LONGEST_OVERRIDES} are submitted. Move the environment into the job "
            "definition."
        )
    return request


def work_key(request: Mapping[str, Any], code: str) -> str:
    """Equal for runs that one job may execute: the same code in the same container, paid by the same tags.

    Args:
        request: SubmitJob's parameters of a job for the run alone.
        code: what the run's job is loaded from.
    """
    overrides = request["containerOverrides"]
    common = {
        **request,
        "jobName": None,
        "tags": {name: value for name, value in request.get("tags", {}).items() if name not in _OF_THE_RUN},
        "containerOverrides": {
            **overrides,
            "command": code,
            "environment": [each for each in overrides["environment"] if each["name"] not in _OF_THE_RUN],
        },
    }
    return sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:32]


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
