"""Another version than wrote a cursor reads it, and one of another shape stops no sensor."""

from dataclasses import dataclass, field

import pytest

from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.cursors import read_cursor, to_json


@dataclass(slots=True)
class Memory:
    at: float
    failure: FailureClass = FailureClass.INTERNAL
    runs: dict[str, tuple[int, ...]] = field(default_factory=dict)


FRESH = Memory(0.0)
KEPT = Memory(7.5, FailureClass.TIMEOUT, {"r": (1, 2)})


@pytest.mark.parametrize(
    ("cursor", "read"),
    [
        (None, FRESH),
        (to_json(KEPT), KEPT),
        (to_json(Memory(7.5)), Memory(7.5)),
        ('{"at": 7.5, "of_a_later_version": 1}', Memory(7.5)),
        ('{"at": 7.5, "failure": "of-a-later-version"}', Memory(7.5)),
        ('{"at": 7.5, "runs": []}', FRESH),
        ("{}", FRESH),
        ("no JSON", FRESH),
    ],
)
def test_a_cursor_is_read_as_far_as_it_can_be(cursor: str | None, read: Memory) -> None:
    assert read_cursor(Memory, cursor, lambda: FRESH) == read
