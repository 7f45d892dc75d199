"""The sentence that a command's failure ends with: what went wrong, and what to do about it."""

from __future__ import annotations

from capstone_dagster.commands.joining import START_STACK
from capstone_dagster.settings import NotConfigured


def sentence_of(error: Exception) -> str | None:
    """What went wrong and what to do about it; None if it is not known to happen."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    from capstone_dagster.local.errors import LocalStackError

    if isinstance(error, NotConfigured):
        return f"{error} {START_STACK}"
    if hasattr(error, "failure_class") or isinstance(error, LocalStackError):
        return str(error)
    if isinstance(error, ClientError):
        return f"AWS refused: {error}. `capstone doctor` tells which permission or name is wrong."
    if isinstance(error, (BotoCoreError, Boto3Error)):
        told = str(error).rstrip(".")
        return f"AWS cannot be used: {told}. Check the AWS_* variables, profile and region among them."
    if isinstance(error, OSError):
        if error.filename is None:
            return f"The system refused: {error}. Check disk space, memory and network."
        return f"{error.filename}: {error.strerror}. {_remedy(error)}"
    return None


def _remedy(error: OSError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "A directory is needed there: name another path, or move that file away."
    if isinstance(error, PermissionError):
        return "Give this user access to it, or name another path."
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return "Check the path."
    return "Check the path, and the disk that it is on."
