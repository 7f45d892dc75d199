"""Every way an analysis can fail, each with what to do about it: the list that everything else quotes.

An exception names its class by an attribute `failure_class`; rooms need not know this list for that. Errors
of libraries, and errors on record, are recognised here by the names of their types.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capstone_dagster.dagster_private import SerializableErrorInfo


class FailureClass(StrEnum):
    """The contract's spellings: log field, metric dimension, run tag and `video_status.failure_class`."""

    UNDECODABLE_VIDEO = "undecodable-video"
    SOURCE_MISSING = "source-missing"
    SOURCE_FORBIDDEN = "source-forbidden"
    SOURCE_ARCHIVED = "source-archived"
    SOURCE_CHANGED = "source-changed"
    ANALYSIS_MISSING = "analysis-missing"
    GPU_OUT_OF_MEMORY = "gpu-out-of-memory"
    GPU_ERROR = "gpu-error"
    MODEL_UNAVAILABLE = "model-unavailable"
    DATABASE_UNAVAILABLE = "database-unavailable"
    STORAGE_UNAVAILABLE = "storage-unavailable"
    DISK_FULL = "disk-full"
    CODE_SERVER_UNREACHABLE = "code-server-unreachable"
    PERMISSION_DENIED = "permission-denied"
    TIMEOUT = "timeout"
    CAPACITY = "capacity"
    CONTAINER_START = "container-start"
    WORKER_LOST = "worker-lost"
    CONFIGURATION = "configuration"
    INTERNAL = "internal"

    @classmethod
    def _missing_(cls, value: object) -> FailureClass:
        """Anyone may write a tag, and a later version may have left a class that does not exist here."""
        return cls.INTERNAL


@dataclass(frozen=True, slots=True)
class Policy:
    """What follows from a failure class.

    Attributes:
        title: what has happened, in a few words: the heading of its page in docs/runbook.md.
        transient: trying again, later or elsewhere, can succeed.
        remedy: what an operator does next, in one sentence.
    """

    title: str
    transient: bool
    remedy: str


POLICIES: Mapping[FailureClass, Policy] = {
    FailureClass.UNDECODABLE_VIDEO: Policy(
        "A video cannot be decoded",
        False,
        "Play the file locally; if it is broken there too, ask for a new upload.",
    ),
    FailureClass.SOURCE_MISSING: Policy(
        "The uploaded object is gone", False, "Upload the video again, or ignore it if it was deleted."
    ),
    FailureClass.SOURCE_FORBIDDEN: Policy(
        "The worker may not read the video",
        False,
        "Grant the worker's role s3:GetObject (and kms:Decrypt) on the bucket, then re-execute the run.",
    ),
    FailureClass.SOURCE_ARCHIVED: Policy(
        "The video is in an archive",
        False,
        "Restore the object from its archive, or enable its KMS key, then re-execute the run.",
    ),
    FailureClass.SOURCE_CHANGED: Policy(
        "The video was overwritten while it was analysed",
        False,
        "Nothing: the newer upload has a run of its own.",
    ),
    FailureClass.ANALYSIS_MISSING: Policy(
        "The video has not been analysed",
        False,
        "Analyse the video first: materialise `detections` and `events` of its partition together.",
    ),
    FailureClass.GPU_OUT_OF_MEMORY: Policy(
        "The GPU has no room for even one picture",
        True,
        "See what else uses the GPU; a smaller model or image size needs less.",
    ),
    FailureClass.GPU_ERROR: Policy(
        "The GPU or its driver failed", True, "Look at the driver's messages; a new machine usually cures it."
    ),
    FailureClass.MODEL_UNAVAILABLE: Policy(
        "The detection model cannot be loaded",
        False,
        "Check CAPSTONE_MODEL and CAPSTONE_MODEL_SHA256 with `capstone doctor`.",
    ),
    FailureClass.DATABASE_UNAVAILABLE: Policy(
        "The event store does not answer",
        True,
        "Check that PostgreSQL runs and can be reached, then re-execute the run from its failed step.",
    ),
    FailureClass.STORAGE_UNAVAILABLE: Policy(
        "S3 does not answer",
        True,
        "Check S3 and the network with `capstone doctor`, then re-execute the run from its failed step.",
    ),
    FailureClass.DISK_FULL: Policy(
        "A disk is full",
        True,
        "Free space on the disk that the message names, or give the machine a larger one.",
    ),
    FailureClass.CODE_SERVER_UNREACHABLE: Policy(
        "The code server does not answer",
        True,
        "Check that the code server runs and that its code can be imported.",
    ),
    FailureClass.PERMISSION_DENIED: Policy(
        "A permission is missing", False, "Grant the permission that the message names."
    ),
    FailureClass.TIMEOUT: Policy(
        "A run took longer than it may",
        True,
        "See in the log where the time went; raise the limit for long videos.",
    ),
    FailureClass.CAPACITY: Policy(
        "No machine came in time", True, "Wait, or raise the quota of the compute environment."
    ),
    FailureClass.CONTAINER_START: Policy(
        "The job's container does not start", True, "Check the image, its registry and the instance's disk."
    ),
    FailureClass.WORKER_LOST: Policy(
        "A worker ended without reporting",
        True,
        "Look at the worker's last log lines: killed for memory, or its machine was taken away.",
    ),
    FailureClass.CONFIGURATION: Policy(
        "A setting is wrong", False, "Correct the setting that the message names."
    ),
    FailureClass.INTERNAL: Policy(
        "A defect of this program", False, "This is a defect: report the run's log."
    ),
}

# What fails every run alike, whatever its video: nothing is gained by more of them until it is mended. All
# others may be one video's doing (undecodable, source-*, gpu-out-of-memory, timeout, worker-lost, internal):
# a camera that sends a hundred broken files must not keep the others waiting. `capacity` costs nothing while
# it lasts, and a run that waits takes the first machine that comes.
SYSTEMIC = frozenset(
    {
        FailureClass.DATABASE_UNAVAILABLE,
        FailureClass.STORAGE_UNAVAILABLE,
        FailureClass.DISK_FULL,
        FailureClass.CODE_SERVER_UNREACHABLE,
        FailureClass.MODEL_UNAVAILABLE,
        FailureClass.PERMISSION_DENIED,
        FailureClass.CONFIGURATION,
        FailureClass.CONTAINER_START,
        FailureClass.GPU_ERROR,
    }
)

# Of these a run that only publishes shows, too, that they are over.
SHOWN_BY_ANY_RUN = frozenset(
    {
        FailureClass.DATABASE_UNAVAILABLE,
        FailureClass.STORAGE_UNAVAILABLE,
        FailureClass.CODE_SERVER_UNREACHABLE,
    }
)

# The classes of errors by name: for errors of libraries that are not imported here, and for errors that are
# on record as text (`SerializableErrorInfo`), where the name is all that is left of the type.
ERRORS: Mapping[str, FailureClass] = {
    # ours
    "UndecodableVideo": FailureClass.UNDECODABLE_VIDEO,
    "SourceMissing": FailureClass.SOURCE_MISSING,
    "SourceForbidden": FailureClass.SOURCE_FORBIDDEN,
    "SourceArchived": FailureClass.SOURCE_ARCHIVED,
    "SourceChanged": FailureClass.SOURCE_CHANGED,
    "AnalysisMissing": FailureClass.ANALYSIS_MISSING,
    "GpuOutOfMemory": FailureClass.GPU_OUT_OF_MEMORY,
    "GpuError": FailureClass.GPU_ERROR,
    "ModelUnavailable": FailureClass.MODEL_UNAVAILABLE,
    "DatabaseUnavailable": FailureClass.DATABASE_UNAVAILABLE,
    "StorageUnavailable": FailureClass.STORAGE_UNAVAILABLE,
    "PermissionDenied": FailureClass.PERMISSION_DENIED,
    "SchemaMissing": FailureClass.CONFIGURATION,
    "ConfigurationError": FailureClass.CONFIGURATION,
    "NotConfigured": FailureClass.CONFIGURATION,
    # SQLAlchemy and both psycopgs; how Dagster's storage gives up
    "OperationalError": FailureClass.DATABASE_UNAVAILABLE,
    "InternalError": FailureClass.DATABASE_UNAVAILABLE,  # a primary that became read-only
    "InterfaceError": FailureClass.DATABASE_UNAVAILABLE,
    "DagsterPostgresException": FailureClass.DATABASE_UNAVAILABLE,
    "RunEndNotRecorded": FailureClass.DATABASE_UNAVAILABLE,
    # botocore and boto3
    "HTTPClientError": FailureClass.STORAGE_UNAVAILABLE,
    "EndpointConnectionError": FailureClass.STORAGE_UNAVAILABLE,
    "ConnectionClosedError": FailureClass.STORAGE_UNAVAILABLE,
    "ConnectTimeoutError": FailureClass.STORAGE_UNAVAILABLE,
    "ReadTimeoutError": FailureClass.STORAGE_UNAVAILABLE,
    "RetriesExceededError": FailureClass.STORAGE_UNAVAILABLE,
    "NoCredentialsError": FailureClass.CONFIGURATION,
    "NoRegionError": FailureClass.CONFIGURATION,
    # Dagster
    "DagsterUserCodeUnreachableError": FailureClass.CODE_SERVER_UNREACHABLE,
    "DagsterUserCodeProcessError": FailureClass.CODE_SERVER_UNREACHABLE,
    "DagsterCodeLocationLoadError": FailureClass.CODE_SERVER_UNREACHABLE,
    "DagsterCodeLocationNotFoundError": FailureClass.CODE_SERVER_UNREACHABLE,
    # torch, Python
    "OutOfMemoryError": FailureClass.GPU_OUT_OF_MEMORY,
    "TimeoutError": FailureClass.TIMEOUT,
}

_TRACEBACK = re.compile(r"\n\s*(?:Stack Trace:|Traceback \(most recent call last\):)")
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def classify(error: BaseException) -> FailureClass:
    """The class of an exception: as it or its causes name it, else as :data:`ERRORS` knows their types."""
    for link in _chain(error):
        name = getattr(link, "failure_class", None)
        if name is not None:
            return FailureClass(name)
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in _DISK_FULL:
            return FailureClass.DISK_FULL
        for kind in type(link).__mro__:
            if kind.__name__ in ERRORS:
                return ERRORS[kind.__name__]
    return FailureClass.INTERNAL


def classify_recorded(error: SerializableErrorInfo) -> FailureClass | None:
    """The class of an error that is on record; None if no link of its chain is known."""
    known = _known_link(error)
    return None if known is None else ERRORS[str(known.cls_name)]


def recorded_sentence(error: SerializableErrorInfo) -> str:
    """What an operator reads of an error on record: the link that names its class, else the innermost one.

    The links around it are Dagster's, on the step or sensor in which it happened.
    """
    link = _known_link(error) or [*_recorded_chain(error)][-1]
    # Errors of the code server carry the server's own traceback within their message.
    text = " ".join(_TRACEBACK.split(link.message, maxsplit=1)[0].split())
    # The record has the type's name before its words; a known error's words are a sentence without it.
    name, _, words = text.partition(": ")
    return words if link.cls_name in ERRORS and name.rpartition(".")[2] == link.cls_name else text


def sentence(error: BaseException) -> str:
    """What an operator reads: the text of our own errors, and the type and text of others."""
    text = str(error).strip() or "no message"
    return text if hasattr(error, "failure_class") else f"{type(error).__name__}: {text}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _known_link(error: SerializableErrorInfo) -> SerializableErrorInfo | None:
    return next((link for link in _recorded_chain(error) if link.cls_name in ERRORS), None)


def _recorded_chain(error: SerializableErrorInfo) -> Iterator[SerializableErrorInfo]:
    """The error, its causes, and then what was being handled: Python records each link at one place alone."""
    yield error
    if error.cause is not None:
        yield from _recorded_chain(error.cause)
    if error.context is not None:
        yield from _recorded_chain(error.context)
