"""A bounded hand-off from one producing thread to one consumer, which either side can end at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class Handoff(Generic[Item]):
    """Runs `produce()` in a thread of its own and yields what it produces, never more than `capacity` ahead.

    An error in the producer is raised to the consumer after the items that came before it. Leaving the `with`
    block, for whatever reason, stops the producer at its next item and joins its thread: `queue.Queue`
    cannot wake a producer that waits for room, so this would need polling with it.
    """

    def __init__(self, produce: Callable[[], Iterable[Item]], *, capacity: int, name: str) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, but is {capacity}")
        self._produce = produce
        self._capacity = capacity
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None
        # A daemon, so that a decoder that hangs inside the C library cannot keep the interpreter from
        # exiting.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def _run(self) -> None:
        try:
            for item in self._produce():
                if not self._put(item):
                    break
        except BaseException as error:  # handed over, whatever it is: the consumer decides
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        with self._changed:
            while len(self._items) >= self._capacity and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed
