"""What can go wrong between Dagster and AWS Batch, by failure class.

Each error names its class by `failure_class`, spelled as everywhere in the project, and says by `transient`
whether the same request can succeed later.
"""

from typing import ClassVar, Literal

FailureClass = Literal[
    "permission-denied", "timeout", "capacity", "container-start", "worker-lost", "configuration", "internal"
]


class BatchGpuError(Exception):
    """Base of all errors of this package; its text is a sentence for an operator."""

    failure_class: ClassVar[FailureClass] = "internal"
    transient: ClassVar[bool] = False


class ConfigurationError(BatchGpuError):
    """The launcher's configuration, a run's tag or an op's tag is wrong; the message names which."""

    failure_class = "configuration"


class RequestRefused(ConfigurationError):
    """AWS understood the request and refused it: an unknown queue or definition, an impossible value."""


class PermissionDenied(BatchGpuError):
    """The role that submits jobs may not do this; the message names the missing action."""

    failure_class = "permission-denied"


class AwsUnavailable(BatchGpuError):
    """AWS throttled the request, failed itself or could not be reached.

    Attributes:
        maybe_done: the request may have taken effect although no answer came.
    """

    failure_class = "capacity"
    transient = True

    def __init__(self, message: str, *, maybe_done: bool) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class JobNotListed(BatchGpuError):
    """A run's job was submitted moments ago and AWS does not list it yet: ask again."""

    transient = True


class WorkerNotStarted(BatchGpuError):
    """A local run's process could not be started."""

    failure_class = "container-start"
    transient = True


class RunEndNotRecorded(BatchGpuError):
    """A run is over and Dagster's storage has no end of it: the storage did not answer."""

    transient = True
