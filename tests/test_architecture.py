"""docs/architecture.md: the functions that it names exist."""

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "architecture.md").read_text()
WAYS = PAGE[PAGE.index("## The way of") : PAGE.index("## Mechanisms")]
NAMES = sorted(set(re.findall(r"`((?:\w+\.)+\w+)`", WAYS)))


@pytest.mark.parametrize("name", NAMES)
def test_a_function_on_the_way_exists(name: str) -> None:
    words = name.split(".")
    package = "" if words[0] == "batch_gpu" else "capstone_dagster."
    for length in range(len(words) - 1, 0, -1):
        try:
            module = importlib.import_module(package + ".".join(words[:length]))
        except ModuleNotFoundError:
            continue
        assert callable(reduce(getattr, words[length:], module)) or words[-1].isupper()
        return
    raise AssertionError(f"{name} is in no module")


def test_the_ways_name_functions() -> None:
    assert len(NAMES) > 20
