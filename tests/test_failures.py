"""Every failure has a class, every class its remedy."""

import errno
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
from dagster_shared.error import SerializableErrorInfo
from psycopg import OperationalError

import capstone_dagster
from capstone_dagster.analysis import GpuOutOfMemory, UndecodableVideo
from capstone_dagster.failures.classes import (
    ERRORS,
    POLICIES,
    FailureClass,
    classify,
    classify_recorded,
    recorded_sentence,
    sentence,
)
from capstone_dagster.storage.errors import DatabaseUnavailable, SourceForbidden


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UndecodableVideo("x"), "undecodable-video"),
        (GpuOutOfMemory("x"), "gpu-out-of-memory"),
        (SourceForbidden("x"), "source-forbidden"),
        (caused(RuntimeError("x"), DatabaseUnavailable("y")), "database-unavailable"),
        (OutOfMemoryError("CUDA out of memory"), "gpu-out-of-memory"),
        (TimeoutError("x"), "timeout"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
        (caused(RuntimeError("x"), OSError(errno.EDQUOT, "Disk quota exceeded")), "disk-full"),
        (caused(KeyError("x"), OperationalError("connection refused")), "database-unavailable"),
        (KeyError("x"), "internal"),
    ],
)
def test_classes(error: Exception, expected: str) -> None:
    assert classify(error) == FailureClass(expected)


def test_every_class_says_what_to_do() -> None:
    assert set(POLICIES) == set(FailureClass)
    for policy in POLICIES.values():
        assert policy.remedy.endswith(".")


def exceptions() -> Iterator[type[Exception]]:
    for module in pkgutil.walk_packages(capstone_dagster.__path__, "capstone_dagster."):
        if "migrations" in module.name or module.name.endswith(("warden", "train", "evaluate", "teachers")):
            continue
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Exception) and kind.__module__.startswith("capstone_dagster."):
                yield kind


def test_every_word_of_ours_is_in_the_list() -> None:
    words = {kind.failure_class for kind in exceptions() if hasattr(kind, "failure_class")}  # type: ignore[attr-defined]

    assert len(words) > 8
    assert words <= {failure.value for failure in FailureClass}


def test_sentences() -> None:
    assert sentence(UndecodableVideo("It is no video.")) == "It is no video."
    assert sentence(KeyError("x")) == "KeyError: 'x'"
    assert sentence(RuntimeError()) == "RuntimeError: no message"


def recorded(*chain: tuple[str, str]) -> SerializableErrorInfo:
    """An error as Dagster records it, the outermost link first."""
    link: SerializableErrorInfo | None = None
    for name, text in reversed(chain):
        link = SerializableErrorInfo(f"{name}: {text}\n", [], name, cause=link)
    assert link is not None
    return link


@pytest.mark.parametrize(
    ("error", "failure", "message"),
    [
        (recorded(("KeyError", "'x'")), None, "KeyError: 'x'"),
        (
            recorded(("StepError", "around it"), ("DatabaseUnavailable", "It does not answer. Look.")),
            "database-unavailable",
            "It does not answer. Look.",
        ),
        (
            recorded(("DagsterPostgresException", "too many retries"), ("OperationalError", "refused")),
            "database-unavailable",
            "too many retries",
        ),
        (recorded(("DagsterUserCodeUnreachableError", "no answer")), "code-server-unreachable", "no answer"),
        (
            recorded(("DagsterUserCodeProcessError", "(RuntimeError) x\n\nStack Trace:\n  File a, line 1")),
            "code-server-unreachable",
            "(RuntimeError) x",
        ),
        (
            recorded(("DagsterCodeLocationNotFoundError", "Location capstone does not exist in workspace")),
            "code-server-unreachable",
            "Location capstone does not exist in workspace",
        ),
        (recorded(("EndpointConnectionError", "no route")), "storage-unavailable", "no route"),
    ],
)
def test_errors_on_record_are_known_by_their_names(
    error: SerializableErrorInfo, failure: str | None, message: str
) -> None:
    assert classify_recorded(error) == failure
    assert recorded_sentence(error) == message


def test_the_names_by_which_recorded_errors_are_known_are_those_of_the_errors() -> None:
    ours = {kind.__name__: kind for kind in exceptions() if hasattr(kind, "failure_class")}
    known = {name: ours[name].failure_class for name in ERRORS if name in ours}  # type: ignore[attr-defined]
    assert len(known) > 10
    assert known == {name: ERRORS[name].value for name in known}
