"""Messages that intake left in the queue, because S3 did not answer for their objects.

No tick and no run fails because of that: SQS delivers the messages again after the visibility time-out.
Intake records the last such tick, and alerts report it.
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
