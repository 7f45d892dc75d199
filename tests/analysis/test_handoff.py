"""The hand-off between threads keeps order and bounds, and can be ended from either side."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from capstone_dagster.analysis.handoff import Handoff


def test_everything_arrives_in_order() -> None:
    with Handoff(lambda: range(1000), capacity=3, name="numbers") as numbers:
        assert list(numbers) == list(range(1000))


def test_an_error_arrives_after_what_came_before_it() -> None:
    def produce() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("spoilt")

    with Handoff(produce, capacity=8, name="numbers") as numbers:
        received = iter(numbers)
        assert [next(received), next(received)] == [1, 2]
        with pytest.raises(ValueError, match="spoilt"):
            next(received)


def test_leaving_wakes_a_producer_that_waits_for_room_and_lets_it_clean_up() -> None:
    produced, cleaned_up = [], threading.Event()

    def produce() -> Iterator[int]:
        try:
            for number in range(1_000_000):
                produced.append(number)
                yield number
        finally:
            cleaned_up.set()

    with Handoff(produce, capacity=2, name="endless") as numbers:
        assert next(iter(numbers)) == 0
    # The block is left only when the thread has ended, so this needs no waiting.
    assert cleaned_up.is_set()
    assert len(produced) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name == "endless"]


def test_no_room_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        Handoff(lambda: (), capacity=0, name="none")
