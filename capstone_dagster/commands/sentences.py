"""Turns a command's failure into one sentence: what went wrong, and what to do."""

from __future__ import annotations

from typing import Any

from capstone_dagster.commands.joining import START_STACK


def sentence_of(error: Exception) -> str | None:
    """What went wrong and what to do; None for an unexpected error."""
    from capstone_dagster.local.errors import LocalStackError
    from capstone_dagster.settings import NotConfigured

    if isinstance(error, NotConfigured):
        return f"{error} {START_STACK}"
    if hasattr(error, "failure_class") or isinstance(error, LocalStackError):
        return str(error)

    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, ClientError):
        return f"AWS refused: {error}. `capstone doctor` shows which permission or name is wrong."
    if isinstance(error, (BotoCoreError, Boto3Error)):
        text = str(error).rstrip(".")
        return f"AWS cannot be used: {text}. Check the AWS_* variables, profile and region among them."
    if isinstance(error, OSError):
        if error.filename is None:
            return f"The system refused: {error}. Check disk space, memory and network."
        return f"{error.filename}: {error.strerror}. {_remedy(error)}"
    return None


def usage_sentence(error: Any) -> str:
    """A usage error as one sentence: what was expected, what came, what to do.

    Args:
        error: from Typer's parsing, or our own `BadParameter`, whose message is complete.
    """
    cause: Any = error.__cause__
    if getattr(error, "param", None) is not None and hasattr(cause, "errors"):
        [first, *_] = cause.errors()
        text = f"{error.param.opts[0]}: {_expected(first)}"
    elif hasattr(error, "param") and error.param is None:
        hint = f"{error.param_hint}: " if error.param_hint else ""
        return f"{hint}{error.message.rstrip('.')}."
    else:
        text = error.format_message()
    text = text.rstrip(".")
    if error.ctx is None:
        return f"{text}."
    return f"{text}; `{error.ctx.command_path} --help` describes its arguments."


def _expected(refusal: dict[str, Any]) -> str:
    """An error of pydantic, which validates Typer's options, with the rejected value."""
    kinds = {"int_parsing": "a whole number", "float_parsing": "a number"}
    if refusal["type"] in kinds:
        return f"expected {kinds[refusal['type']]}, got {refusal['input']!r}"
    limits = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    for name, words in limits.items():
        if name in refusal.get("ctx", {}):
            return f"expected {words} {refusal['ctx'][name]:g}, got {refusal['input']!r}"
    said: str = refusal["msg"]
    return said.removeprefix("Value error, ")


def _remedy(error: OSError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "A directory is needed there: name another path, or move that file away."
    if isinstance(error, PermissionError):
        return "Give this user access to it, or name another path."
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return "Check the path."
    return "Check the path, and the disk that it is on."
