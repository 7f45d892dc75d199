"""Messages that intake had to leave in the queue, because S3 would not tell of their objects.

No tick and no run fails of that; the messages come again after the queue's visibility time-out. What the last
such tick met is kept in Dagster's own storage: intake alone writes it, notices are made from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import dagster as dg

from capstone_dagster.failures.cursors import known_fields

_KEY = "capstone/intake/left_messages"


@dataclass(frozen=True, slots=True)
class LeftMessages:
    """What one tick left.

    Attributes:
        count: how many messages.
        failure: the failure class of the last of them; `sentence` describes it.
        at: when, seconds since 1970.
    """

    count: int
    failure: str
    sentence: str
    at: float


def read_left(instance: dg.DagsterInstance) -> LeftMessages | None:
    """What was left last; None if nothing ever was."""
    kept = instance.daemon_cursor_storage.get_cursor_values({_KEY}).get(_KEY)
    return None if kept is None else LeftMessages(**known_fields(LeftMessages, json.loads(kept)))


def write_left(instance: dg.DagsterInstance, left: LeftMessages) -> None:
    """Keep what a tick left; for intake's tick only."""
    instance.daemon_cursor_storage.set_cursor_values({_KEY: json.dumps(asdict(left))})
