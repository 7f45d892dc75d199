"""How a Batch job ends and what that means: AWS's reasons as failure classes, in one table.

The reasons are those of AWS Batch's user guide ("Job states", "Automated job retries", "Jobs stuck in a
RUNNABLE status") and of Amazon ECS, whose agent runs the containers. Patterns begin at the start of the text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from batch_gpu.errors import FailureClass
from batch_gpu.jobs import CAUSE_TAG, FAILURE_TAG, RECLAIMED_TAG

Job = Mapping[str, Any]
"""One element of DescribeJobs' answer."""

WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
ENDED = ("SUCCEEDED", "FAILED")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run has no worker any more.

    Attributes:
        transient: trying again, later or elsewhere, can succeed.
        message: sentences for an operator: what happened, AWS's reason, what to do.
        cause: what happened, in one sentence; the message if none is given.
        reclaimed: the machine was taken away, which the run's work did not cause.
    """

    failure: FailureClass
    transient: bool
    message: str
    cause: str = ""
    reclaimed: bool = False

    def tags(self) -> dict[str, str]:
        """Failure and cause as the run's tags."""
        reclaimed = {RECLAIMED_TAG: "true"} if self.reclaimed else {}
        return {FAILURE_TAG: self.failure, CAUSE_TAG: self.cause or self.message, **reclaimed}


@dataclass(frozen=True, slots=True)
class _Rule:
    where: Literal["status", "container", "exit"]
    pattern: str
    failure: FailureClass
    transient: bool
    happened: str
    remedy: str
    # How long a job may wait for this reason, which does not pass by waiting. None: as long as any job may.
    patience_s: int | None = None
    reclaimed: bool = False


_BY_THE_QUEUE = r"(Canceled by JobStateTimeLimit action due to reason: )?"
# AWS's least time for an action of the queue: a change of the compute environment is over by then.
SETTLING_S = 600
# AWS does not say what is wrong, so that it may pass; another half an hour for the same seldom helps.
UNDETERMINED_S = 1800

# The first rule that matches decides. `status` is the job's statusReason, `container` its container's reason,
# `exit` its exit code.
RULES: Sequence[_Rule] = (
    _Rule("status", r"Host EC2 ", "worker-lost", True, "The machine was taken away",
          "Nothing: spot machines are reclaimed now and then, and the run is tried again.", reclaimed=True),
    _Rule("status", r"Job attempt duration exceeded timeout", "timeout", True, "The time limit was reached",
          "See in the log where the time went; raise timeout_seconds for long work."),
    _Rule("status", r"MISCONFIGURATION:SERVICE_ROLE_PERMISSIONS", "permission-denied", False,
          "AWS Batch may not start machines",
          "Give the compute environment's service role what AWS's page on jobs stuck in RUNNABLE names.", 0),
    _Rule("status", _BY_THE_QUEUE + "MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED",
          "configuration", False, "EC2 does not start machines of these types in these zones",
          "Choose instance types that the subnets' zones offer (aws ec2 describe-instance-type-offerings), "
          "or subnets in other zones, and check the launch template.", SETTLING_S),
    _Rule("status", _BY_THE_QUEUE + "MISCONFIGURATION:",
          "configuration", False, "No machine of the queue can ever run the job",
          "Ask for fewer GPUs, vCPUs or MiB, or allow larger machines in the compute environment.", 0),
    _Rule("status", "ACTION_REQUIRED", "configuration", False,
          "All compute environments of the queue are invalid",
          "Read the environments' statusReason (aws batch describe-compute-environments) and correct it.",
          SETTLING_S),
    _Rule("status", "UNDETERMINED", "capacity", True, "The queue is blocked, and AWS Batch does not know why",
          "Look at the compute environment's status, its Auto Scaling group's activities and the account's "
          "quotas.", UNDETERMINED_S),
    _Rule("status", _BY_THE_QUEUE + "CAPACITY:", "capacity", True,
          "No machine came in time", "Wait, raise the quota, or allow more instance types."),
    _Rule("status", r"Container Overrides length", "configuration", False, "The command is too long for ECS",
          "Shorten the job's environment and the instance's configuration."),
    _Rule("container", r"(OutOfMemory|Container killed due to memory)", "worker-lost", True,
          "The container was killed for memory", "Raise memory_mib if it happens again."),
    _Rule("exit", r"137$", "worker-lost", True, "The container was killed, for memory most likely",
          "Raise memory_mib if it happens again."),
    _Rule("container", r"(CannotPull|CannotCreate|CannotStart|CannotInspect|ResourceInit|DockerTimeout)",
          "container-start", True, "The container could not be started",
          "Check the image, its registry, the secrets and the machine's disk."),
    _Rule("status", r"Task failed to start", "container-start", True, "The container could not be started",
          "Check the image, its registry, the secrets and the machine's disk."),
    _Rule("exit", r"12[67]$", "container-start", False, "The container's command could not be executed",
          "Check that the image holds the code, and the launcher's entry_point."),
)  # fmt: skip


def ending_of(job: Job) -> Ending:
    """The ending of a job whose status is one of `ENDED` although its run has not finished."""
    rule = _rule_of(job)
    if rule is not None:
        ending = _ending(job, rule.failure, rule.transient, rule.happened, rule.remedy)
        return replace(ending, reclaimed=rule.reclaimed)
    if job.get("isTerminated") or job.get("isCancelled"):
        happened = "The job was terminated in AWS Batch"
        return _ending(job, "worker-lost", False, happened, "Re-execute the run if it is still wanted.")
    if last_container(job).get("exitCode") == 0:
        happened = "The worker ended without finishing the run"
    else:
        happened = "The worker ended by an error of its own"
    return _ending(job, "worker-lost", True, happened, "See the worker's last log lines.")


def lost_to_reclaim(job: Job, run_started_ms: int | None) -> Ending | None:
    """Whether the attempt that began the run has ended while Batch starts the job again.

    A second attempt does nothing for a run that has begun: Dagster makes it exit. It would only wait for a
    machine and hold it while it imports.

    Args:
        run_started_ms: when the worker began the run, Unix time in ms.
    """
    attempts = job.get("attempts") or []
    if job["status"] in ENDED or not attempts:
        return None
    last_stop = attempts[-1].get("stoppedAt")
    if job["status"] in WAITING or (last_stop and run_started_ms and run_started_ms < last_stop):
        reason = attempts[-1].get("statusReason") or "its attempt ended"
        return Ending(
            "worker-lost",
            True,
            f"The worker's machine was taken away during the run ({reason}). The job's further attempts are "
            "ended, because this run cannot be continued by them.",
            reclaimed=True,
        )
    return None


def interrupted_by(job: Job) -> Ending | None:
    """Why a worker was stopped, once AWS reports it: from the end of the job or of its last attempt."""
    if job["status"] in ENDED:
        return ending_of(job)
    attempts = job.get("attempts") or []
    if not attempts:
        return None
    return ending_of({**job, "status": "FAILED", "statusReason": attempts[-1].get("statusReason")})


def blocked(job: Job, for_s: float) -> Ending | None:
    """The ending of a job that has waited for `for_s` seconds for something that does not come by waiting."""
    rule = _rule_of(job) if job["status"] in WAITING else None
    if rule is None or rule.patience_s is None or for_s < rule.patience_s:
        return None
    return ending_of(job)


def waited_too_long(job: Job, limit_s: int, now_ms: int) -> Ending | None:
    """The ending of a job that has waited for a machine for longer than `limit_s`."""
    waited_s = (now_ms - int(job.get("createdAt", now_ms))) / 1000
    if job["status"] not in WAITING or waited_s <= limit_s:
        return None
    reason = job.get("statusReason") or "no reason given"
    return Ending(
        "capacity",
        True,
        f"No machine came within max_wait_seconds ({limit_s} s; {job['status']}: {reason}). Wait, raise the "
        "quota, or allow more instance types.",
    )


def last_container(job: Job) -> Mapping[str, Any]:
    """The container of the latest attempt: the job's own once it is known, else the last ended one's."""
    own = job.get("container") or {}
    if own.get("logStreamName") or own.get("exitCode") is not None or own.get("reason"):
        return dict(own)
    attempts = job.get("attempts") or []
    return dict(attempts[-1].get("container") or {}) if attempts else dict(own)


def _rule_of(job: Job) -> _Rule | None:
    container = last_container(job)
    exit_code = container.get("exitCode")
    texts = {
        "status": str(job.get("statusReason") or ""),
        "container": str(container.get("reason") or ""),
        "exit": "" if exit_code is None else str(exit_code),
    }
    return next((rule for rule in RULES if re.match(rule.pattern, texts[rule.where])), None)


def _ending(job: Job, failure: FailureClass, transient: bool, happened: str, remedy: str) -> Ending:
    container = last_container(job)
    attempts = job.get("attempts") or []
    facts = []
    if attempts:
        facts.append(f"attempt {len(attempts)}")
    if job.get("statusReason"):
        facts.append(f"status reason: {job['statusReason']}")
    if container.get("exitCode") is not None:
        facts.append(f"exit code {container['exitCode']}")
    if container.get("reason"):
        facts.append(f"container: {container['reason']}")
    cause = f"{happened} ({'; '.join(facts)})." if facts else f"{happened}."
    whole = "; ".join([f"job {job['jobId']} is {job['status']}", *facts])
    return Ending(failure, transient, f"{happened} ({whole}). {remedy}", cause)
