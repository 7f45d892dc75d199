"""What can go wrong with storage, one class for each thing an operator does about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from capstone_dagster.clients import FORBIDDEN, error_code


class StorageError(Exception):
    """Base of this room's errors; `failure_class` is the contract's word for it."""

    failure_class = "storage-unavailable"


class StorageUnavailable(StorageError):
    """The store does not answer, answers with a server error, or throttles. Passing: try again."""


class PermissionDenied(StorageError):
    """The store answers, and forbids the call."""

    failure_class = "permission-denied"


class ObjectNotFound(StorageError):
    """There is no object of that name. Derived objects are written before they are referred to, so a
    missing one was deleted since."""

    failure_class = "internal"


class AnalysisMissing(ObjectNotFound):
    """The video has no such results: it was never analysed, or they were deleted."""

    failure_class = "analysis-missing"


class SourceMissing(StorageError):
    """The uploaded video is not there (any more)."""

    failure_class = "source-missing"


class SourceForbidden(StorageError):
    """The uploaded video is there and may not be read."""

    failure_class = "source-forbidden"


class SourceArchived(StorageError):
    """The uploaded video is in an archive, or encrypted by a key that is disabled: restore it."""

    failure_class = "source-archived"


class SourceChanged(StorageError):
    """The object is not the upload that was asked for: it was overwritten in between."""

    failure_class = "source-changed"


class DatabaseUnavailable(StorageError):
    """The event store does not answer, may not be written now, or broke off. Passing: try again."""

    failure_class = "database-unavailable"


# 405 is S3's word for a version that is a delete marker.
_NOT_FOUND = {"404", "NoSuchKey", "NoSuchVersion", "NoSuchBucket", "NotFound", "405", "MethodNotAllowed"}
_CHANGED = {"412", "PreconditionFailed"}


@contextmanager
def explained(url: str, *, source: bool = False) -> Iterator[None]:
    """Turn botocore's and boto3's errors about the object at `url` into this room's classes.

    Args:
        url: the object, named in the message.
        source: it is an uploaded video, for which missing, forbidden and changed have their own classes.
    """
    # Imported here, because code that only reads the database does not need it.
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise _in_our_words(_real_error(error), url, source=source) from error


def _real_error(error: BaseException) -> BaseException:
    """What boto3's transfers wrap: S3's answer, or why there was none; the wrapper if it has neither."""
    from boto3.exceptions import Boto3Error

    link: BaseException | None = error
    while isinstance(link, Boto3Error):
        # RetriesExceededError keeps the last try's error to itself; the others were raised while handling it.
        link = getattr(link, "last_exception", None) or link.__cause__ or link.__context__
    return error if link is None else link


def _in_our_words(error: BaseException, url: str, *, source: bool) -> StorageError:
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, BotoCoreError):
        return StorageUnavailable(
            f"S3 cannot be reached for {url}: {error}. Check AWS_ENDPOINT_URL, AWS_REGION, credentials and "
            "the network."
        )
    if not isinstance(error, ClientError):
        return StorageUnavailable(f"The transfer of {url} broke off: {error}. It is tried again.")
    code = error_code(error)
    operation = error.operation_name
    if code in _NOT_FOUND:
        if source:
            return SourceMissing(
                f"The video {url} does not exist (S3 answered {code} to {operation}). It was deleted, or "
                "never there: upload it again."
            )
        return ObjectNotFound(f"There is no object {url} (S3 answered {code} to {operation}).")
    if source and code == "InvalidObjectState":
        return SourceArchived(
            f"The video {url} is in an archive (S3 answered {code} to {operation}). Restore the object: a "
            "completed restore is analysed like an upload."
        )
    if source and code.startswith("KMS."):
        return SourceArchived(
            f"The key that the video {url} is encrypted by cannot be used ({code} to {operation}). Enable "
            "the KMS key, then re-execute the run."
        )
    if code in FORBIDDEN:
        remedy = f"Grant this role s3:{'GetObject' if operation == 'HeadObject' else operation} on it."
        kind = SourceForbidden if source else PermissionDenied
        return kind(f"S3 forbids {operation} on {url} ({code}). {remedy}")
    if code in _CHANGED:
        return SourceChanged(
            f"{url} is not the upload that was asked for: it was overwritten since. The newer upload has "
            "a run of its own; nothing is to be done."
        )
    return StorageUnavailable(f"S3 failed {operation} on {url}: {error}. It is tried again.")
