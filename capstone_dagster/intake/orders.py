"""What an operator ordered of intake: the command leaves it, the sensor's next tick follows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from capstone_dagster.failures.cursors import Kept

if TYPE_CHECKING:
    import dagster as dg


@dataclass(frozen=True, slots=True)
class Order:
    """An operator's command. It takes precedence over the breaker until the next command.

    Attributes:
        at: when it was given, seconds since 1970.
    """

    wanted: Literal["pause", "resume"]
    by: str
    why: str
    at: float = field(default=0.0)


ORDER: Kept[Order | None] = Kept("capstone/intake/order", Order | None, lambda: None)
"""The last order that was given, followed or not; None if there was none."""


def give_order(
    instance: dg.DagsterInstance, wanted: Literal["pause", "resume"], *, by: str, why: str
) -> Order:
    """Leave an order in Dagster's storage, where it survives restarts; the next tick follows it.

    Args:
        by, why: who gave the command, and the reason.
    """
    order = Order(wanted, by=by, why=why, at=time.time())
    ORDER.write(instance, order)
    return order
