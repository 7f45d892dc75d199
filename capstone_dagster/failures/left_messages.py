"""Messages that intake had to leave in the queue, because S3 would not tell of their objects.

No tick and no run fails of that; the messages come again after the queue's visibility time-out. What the last
such tick met is kept in Dagster's own storage: intake alone writes it, notices are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.cursors import Kept


@dataclass(frozen=True, slots=True)
class LeftMessages:
    """What one tick left.

    Attributes:
        count: how many messages.
        failure: the class of the last of them; `sentence` describes it.
        at: when, seconds since 1970.
    """

    count: int
    failure: FailureClass
    sentence: str
    at: float


LEFT_MESSAGES: Kept[LeftMessages | None] = Kept(
    "capstone/intake/left_messages", LeftMessages | None, lambda: None
)
"""What was left last, None if nothing ever was; only intake's tick writes it."""
