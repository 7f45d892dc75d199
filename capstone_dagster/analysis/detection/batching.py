"""As many pictures at once as the memory takes: found by trying, with nothing of a failed try kept alive.

Independent of PyTorch: the caller says how to recognise exhausted memory and how to release it.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from ..errors import GpuOutOfMemory, first_line

Item = TypeVar("Item")
Result = TypeVar("Result")


class Memory(Protocol):
    """The memory that batches have to fit into."""

    def free(self) -> int:
        """Bytes that nobody uses."""
        ...

    def release(self) -> None:
        """Gives back what is kept for later although nobody uses it."""
        ...

    def is_exhausted(self, error: Exception) -> bool:
        """Whether this failure means that there was no room."""
        ...


class Batching:
    """Runs work in batches that fit; remembers for each shape how many items do. Safe to share by threads.

    `backoffs` counts the batches that were halved.
    """

    def __init__(self, memory: Memory, first_size: Callable[[Hashable], int]) -> None:
        """Takes the size to begin with for a shape not seen before, asked for once for each."""
        self._memory = memory
        self._first_size = first_size
        self._sizes: dict[Hashable, int] = {}
        self._remembering = threading.Lock()
        self.backoffs = 0
        self._turns = _Turns()

    def size(self, shape: Hashable) -> int:
        """How many items of this shape are worked on at once, at least 1."""
        with self._remembering:
            if shape not in self._sizes:
                self._sizes[shape] = max(1, self._first_size(shape))
            return self._sizes[shape]

    def run(
        self, shape: Hashable, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]
    ) -> list[Result]:
        """What `work` makes of the items, in order; it is given some of them at a time.

        A batch without room is halved, and so are all later ones of this shape; what is finished stays. A
        single item without room is tried once more while no other thread holds any.

        Raises:
            GpuOutOfMemory: not even that one fits.
        """
        done: list[Result] = []
        while len(done) < len(items):
            batch = items[len(done) : len(done) + self.size(shape)]
            with self._turns.shared():
                finished, reason = self._attempt(work, batch)
            if finished is None and len(batch) == 1:
                self._memory.release()
                with self._turns.alone():
                    finished, reason = self._attempt(work, batch)
            if finished is not None:
                done += finished
                continue
            self._memory.release()
            if len(batch) == 1:
                raise GpuOutOfMemory(
                    f"Room for one picture of shape {shape} was expected, but with "
                    f"{self._memory.free() / (1 << 20):.0f} MiB free there is none ({reason}); lower "
                    "image_size, take a smaller model or a larger GPU, or end what else uses this one."
                )
            self._halve(shape, len(batch))
        return done

    def _attempt(
        self, work: Callable[[Sequence[Item]], list[Result]], batch: Sequence[Item]
    ) -> tuple[list[Result] | None, str]:
        """The results, or None and the reason when there was no room.

        An error holds its traceback, that the frames of the work, and those their tensors. So nothing is
        tried again in here, where the error lives, and the frames are emptied in case somebody keeps it.
        """
        try:
            return work(batch), ""
        except Exception as error:  # which one means "no room" the memory knows; others go on
            if not self._memory.is_exhausted(error):
                raise
            reason = first_line(error)
            _empty_frames(error)
        return None, reason

    def _halve(self, shape: Hashable, failed: int) -> None:
        with self._remembering:
            # Half of what failed, not of what is remembered: two threads may fail with the same size.
            self._sizes[shape] = min(self._sizes[shape], failed // 2)
            self.backoffs += 1


def _empty_frames(error: BaseException) -> None:
    seen: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            links += [link.__cause__, link.__context__]


class _Turns:
    """Many may work at a time, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._alone = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._alone, self._changed:  # nobody starts while one waits to be alone
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._alone:
            with self._changed:
                self._changed.wait_for(lambda: self._working == 0)
            yield
