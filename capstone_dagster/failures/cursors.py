"""What sensors keep from tick to tick, as JSON: read by another version of the program than wrote it.

A deployment may be rolled back. Fields of a later version are ignored, missing ones have their defaults, and
a failure class that this version does not have is `internal`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter

if TYPE_CHECKING:
    import dagster as dg

T = TypeVar("T")
_log = logging.getLogger("capstone.reactions")


def to_json(value: object) -> str:
    """A dataclass as JSON; what has its default is left out."""
    kind: Any = type(value)
    return _adapter(kind).dump_json(value, exclude_defaults=True).decode()


def from_json(kind: Callable[..., T], text: str) -> T:
    """What :func:`to_json` wrote.

    Raises:
        ValueError: it is something else.
    """
    value: T = _adapter(kind).validate_json(text)
    return value


def read_cursor(kind: Callable[..., T], cursor: str | None, fresh: Callable[[], T]) -> T:
    """What the last tick left.

    Args:
        fresh: makes what a sensor begins with, at its first tick and where its cursor has another shape: a
            sensor that forgets goes on, one that fails does not.
    """
    if cursor:
        try:
            return from_json(kind, cursor)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            _log.warning(
                f"A cursor cannot be read, and begins anew: {reason}", extra={"action": "cursor.lost"}
            )
    return fresh()


class Kept(Generic[T]):
    """A value in Dagster's own storage, not in the event store, which may be what failed.

    Args:
        kind: a dataclass, or a list or dictionary of those.
        empty: what it is before it is written first.
    """

    def __init__(self, key: str, kind: Any, empty: Callable[[], T]) -> None:
        self.key = key
        self._kind = kind
        self._empty = empty

    def parse(self, text: str | None) -> T:
        """The value as Dagster's storage has it."""
        return self._empty() if text is None else _adapter(self._kind).validate_json(text)

    def read(self, instance: dg.DagsterInstance) -> T:
        return self.parse(instance.daemon_cursor_storage.get_cursor_values({self.key}).get(self.key))

    def write(self, instance: dg.DagsterInstance, value: T) -> None:
        text = _adapter(self._kind).dump_json(value, exclude_defaults=True).decode()
        instance.daemon_cursor_storage.set_cursor_values({self.key: text})


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
