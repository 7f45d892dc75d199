"""Batches shrink until they fit, and a failed one leaves nothing behind: tried on a memory that counts."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.analysis import GpuOutOfMemory
from capstone_dagster.analysis.detection.batching import Batching
from tests.support.waiting import scaled

WAIT_S = scaled(20)


class NoRoom(Exception):
    """What the fake GPU raises."""


class Tensor:
    """Takes room for as long as anything refers to it."""


class FakeGpu:
    """A memory for `capacity` tensors, and a model that takes one for each picture, all at a time."""

    def __init__(self, capacity: int, *, later: Sequence[int] = ()) -> None:
        """`later` are the capacities of the attempts after the first, then the last one stays."""
        self.capacities = [capacity, *later]
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.found_alive: list[int] = []
        self.attempts: list[int] = []
        self.finished: list[int] = []
        self.releases = 0

    def free(self) -> int:
        return (self.capacities[0] - len(self.alive)) << 20

    def release(self) -> None:
        self.releases += 1

    def is_exhausted(self, error: Exception) -> bool:
        return isinstance(error, NoRoom)

    def tensor(self) -> Tensor:
        if len(self.alive) >= self.capacities[0]:
            raise NoRoom("out of fake memory")
        tensor = Tensor()
        self.alive.add(tensor)
        return tensor

    def work(self, batch: Sequence[int]) -> list[int]:
        if self.attempts and len(self.capacities) > 1:
            self.capacities.pop(0)
        self.attempts.append(len(batch))
        self.found_alive.append(len(self.alive))
        activations = []
        for _ in batch:
            activations.append(self.tensor())
        self.finished += batch
        return [-item for item in batch]


def naively(items: Sequence[int], work: Callable[[Sequence[int]], list[int]]) -> list[int]:
    """What everybody writes first: halves, recursively, where the error is caught."""
    try:
        return work(items)
    except NoRoom:
        if len(items) == 1:
            raise
        middle = len(items) // 2
        return naively(items[:middle], work) + naively(items[middle:], work)


def leaves_nothing_alive(gpu: FakeGpu) -> bool:
    return not any(gpu.found_alive)


@given(
    count=st.integers(0, 40),
    first=st.integers(-1, 50),
    capacity=st.integers(1, 12),
    later=st.lists(st.integers(1, 12), max_size=30),
)
def test_every_item_is_worked_on_once_and_in_order(
    count: int, first: int, capacity: int, later: list[int]
) -> None:
    gpu = FakeGpu(capacity, later=later)
    items = list(range(count))
    batching = Batching(gpu, lambda shape: first)
    assert batching.run("shape", items, gpu.work) == [-item for item in items]
    assert gpu.finished == items
    assert leaves_nothing_alive(gpu)
    # Halved each time, and never back.
    assert gpu.releases <= max(first, 1).bit_length()


@given(count=st.integers(2, 40), capacity=st.integers(1, 12))
def test_the_naive_way_fails_these_checks(count: int, capacity: int) -> None:
    gpu = FakeGpu(capacity)
    try:
        naively(range(count), gpu.work)
    except NoRoom:
        assert not leaves_nothing_alive(gpu)  # no room for one picture, because of what failed before
    else:
        assert leaves_nothing_alive(gpu) == (count <= capacity)


def test_nothing_stays_alive_when_somebody_keeps_the_error() -> None:
    gpu = FakeGpu(3)
    kept: list[BaseException] = []

    def work(batch: Sequence[int]) -> list[int]:
        try:
            return gpu.work(batch)
        except NoRoom as error:
            failure = NoRoom("raised again, and in a circle with its own frame")
            kept.append(failure)
            raise failure from error

    assert Batching(gpu, lambda shape: 8).run("shape", list(range(8)), work) == [-item for item in range(8)]
    assert kept
    assert leaves_nothing_alive(gpu)


def test_the_safe_size_is_remembered_for_its_shape_alone() -> None:
    asked: list[object] = []

    def first_size(shape: object) -> int:
        asked.append(shape)
        return 16

    gpu = FakeGpu(5)
    batching = Batching(gpu, first_size)
    batching.run((1080, 1920), list(range(12)), gpu.work)
    assert gpu.attempts == [12, 6, 3, 3, 3, 3]
    batching.run((1080, 1920), list(range(4)), gpu.work)
    assert gpu.attempts[6:] == [3, 1]
    assert (batching.size((1080, 1920)), batching.size((64, 64))) == (3, 16)
    batching.run((64, 64), list(range(6)), gpu.work)
    assert gpu.attempts[8:] == [6, 3, 3]
    assert asked == [(1080, 1920), (64, 64)]


def test_memory_is_released_before_each_new_try() -> None:
    gpu = FakeGpu(1)
    seen: list[int] = []

    def work(batch: Sequence[int]) -> list[int]:
        seen.append(gpu.releases)
        return gpu.work(batch)

    Batching(gpu, lambda shape: 4).run("shape", [1, 2, 3, 4], work)
    assert gpu.attempts == [4, 2, 1, 1, 1, 1]
    assert seen == [0, 1, 2, 2, 2, 2]


def test_a_single_picture_without_room_is_an_error_with_a_way_out() -> None:
    gpu = FakeGpu(0)
    with pytest.raises(
        GpuOutOfMemory,
        match=r"shape \(4320, 7680\).* 0 MiB free there is none \(out of fake memory\); lower image_size",
    ) as refusal:
        Batching(gpu, lambda shape: 4).run((4320, 7680), [1, 2, 3, 4], gpu.work)
    assert refusal.value.failure_class == "gpu-out-of-memory"
    assert gpu.attempts == [4, 2, 1, 1]
    assert leaves_nothing_alive(gpu)


def test_other_failures_pass_at_once() -> None:
    def work(batch: Sequence[int]) -> list[int]:
        raise ValueError("shapes do not match")

    with pytest.raises(ValueError, match="shapes do not match"):
        Batching(FakeGpu(1), lambda shape: 4).run("shape", [1, 2, 3, 4], work)


def test_a_picture_that_fits_only_alone_waits_until_no_other_thread_holds_any() -> None:
    gpu = FakeGpu(1)
    batching = Batching(gpu, lambda shape: 1)
    first_holds, second_failed = threading.Event(), threading.Event()

    def first(batch: Sequence[int]) -> list[int]:
        held = gpu.tensor()
        first_holds.set()
        assert second_failed.wait(WAIT_S)
        return [-item for item in batch if held]

    def second(batch: Sequence[int]) -> list[int]:
        try:
            held = gpu.tensor()
        finally:
            second_failed.set()
        return [-item for item in batch if held]

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(batching.run, "shape", [1], first)
        assert first_holds.wait(WAIT_S)
        other = pool.submit(batching.run, "shape", [2], second)
        assert (one.result(WAIT_S), other.result(WAIT_S)) == ([-1], [-2])


def test_two_threads_that_fail_with_one_size_halve_it_once() -> None:
    gpu = FakeGpu(0)
    batching = Batching(gpu, lambda shape: 8)
    both_failed = threading.Barrier(2)

    def work(batch: Sequence[int]) -> list[int]:
        if len(batch) == 8:
            both_failed.wait(WAIT_S)
            raise NoRoom
        return list(batch)

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(batching.run, "shape", list(range(8)), work) for _ in range(2)]
        assert [run.result(WAIT_S) for run in runs] == [list(range(8))] * 2
    assert batching.size("shape") == 4
