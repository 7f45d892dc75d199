"""What the fake consists of: machines, queues, jobs and requested faults."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batch_gpu.testing.container import Container

ENDED = ("SUCCEEDED", "FAILED")
WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
REGION, ACCOUNT = "ap-northeast-2", "123456789012"


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
class Attempt:
    """One ended try of a job."""

    started_ms: int
    stopped_ms: int
    status_reason: str
    exit_code: int | None
    reason: str | None
    stream: str


@dataclass(slots=True)
class Job:
    """A job, from its request to its end.

    Attributes:
        placed_ms: when it got a machine.
        stopping: the status reason that its container ends with, once it is asked to.
    """

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
    stopping: str | None = None
    reclaimed_at_ms: int | None = None
    terminated: bool = False
    cancelled: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def arn(self) -> str:
        return arn(f"job/{self.job_id}")

    @property
    def overrides(self) -> Mapping[str, Any]:
        """What the request changes of the definition's container."""
        return self.request.get("containerOverrides") or {}

    @property
    def properties(self) -> Mapping[str, Any]:
        """The definition's container."""
        properties: Mapping[str, Any] = self.definition["containerProperties"]
        return properties

    @property
    def environment(self) -> list[Mapping[str, str]]:
        """The container's variables; of two of a name, the later one holds."""
        return [*self.properties.get("environment", []), *self.overrides.get("environment", [])]

    @property
    def command(self) -> list[str]:
        return list(self.overrides.get("command") or self.properties.get("command") or [])

    @property
    def demand(self) -> Counter[str]:
        """GPUs, vCPUs and MiB that the job takes of a machine."""
        stated = [
            *self.properties.get("resourceRequirements", []),
            *self.overrides.get("resourceRequirements", []),
        ]
        return Counter({each["type"]: int(float(each["value"])) for each in stated})

    def setting(self, name: str) -> Mapping[str, Any]:
        """A setting that a request may make in place of the definition's, such as `timeout`."""
        return self.request.get(name) or self.definition.get(name) or {}


def arn(resource: str) -> str:
    """The name of a resource in all of AWS."""
    return f"arn:aws:batch:{REGION}:{ACCOUNT}:{resource}"
