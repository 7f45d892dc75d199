"""Every failure has a class, every class its remedy."""

import errno
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import capstone_dagster
from capstone_dagster import settings
from capstone_dagster.analysis import GpuOutOfMemory, UndecodableVideo
from capstone_dagster.failures.classes import ERRORS, POLICIES, FailureClass, classify, sentence
from capstone_dagster.storage import database, errors
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


def test_the_names_by_which_recorded_errors_are_classified_are_those_of_the_errors() -> None:
    known = {
        name: kind
        for module in (errors, database, settings)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and hasattr(kind, "failure_class")
    }
    for name, failure in ERRORS.items():
        assert known[name].failure_class == failure.value
