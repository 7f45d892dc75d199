"""Another version than wrote a cursor reads it, and one of another shape stops no sensor."""

from dataclasses import dataclass, field

import pytest

from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.cursors import read_cursor, to_json


@dataclass(slots=True)
class Cursor:
    at: float
    failure: FailureClass = FailureClass.INTERNAL
    runs: dict[str, tuple[int, ...]] = field(default_factory=dict)


FRESH = Cursor(0.0)
KEPT = Cursor(7.5, FailureClass.TIMEOUT, {"r": (1, 2)})


@pytest.mark.parametrize(
    ("cursor", "read"),
    [
        (None, FRESH),
        (to_json(KEPT), KEPT),
        (to_json(Cursor(7.5)), Cursor(7.5)),
        ('{"at": 7.5, "of_a_later_version": 1}', Cursor(7.5)),
        ('{"at": 7.5, "failure": "of-a-later-version"}', Cursor(7.5)),
        ('{"at": 7.5, "runs": []}', FRESH),
        ("{}", FRESH),
        ("no JSON", FRESH),
    ],
)
def test_a_cursor_is_read_as_far_as_it_can_be(cursor: str | None, read: Cursor) -> None:
    assert read_cursor(Cursor, cursor, lambda: FRESH) == read
