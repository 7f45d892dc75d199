"""What an operator ordered of intake: the command leaves it, the sensor's next tick follows it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from capstone_dagster.failures.cursors import known_fields

if TYPE_CHECKING:
    import dagster as dg

ORDER_KEY = "capstone/intake/order"


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator wants: it goes before whatever the breaker would do, until the next order.

    Attributes:
        at: when it was given, seconds since 1970.
    """

    wanted: Literal["pause", "resume"]
    by: str
    why: str
    at: float = field(default=0.0)


def give_order(
    instance: dg.DagsterInstance, wanted: Literal["pause", "resume"], *, by: str, why: str
) -> Order:
    """Leave an order in Dagster's storage, where it survives restarts; the next tick follows it.

    Args:
        by, why: who gave the command, and the reason.
    """
    order = Order(wanted, by=by, why=why, at=time.time())
    instance.daemon_cursor_storage.set_cursor_values({ORDER_KEY: json.dumps(asdict(order))})
    return order


def last_order(instance: dg.DagsterInstance) -> Order | None:
    """The last order that was given, followed or not; None if there was none."""
    return order_of(instance.daemon_cursor_storage.get_cursor_values({ORDER_KEY}).get(ORDER_KEY))


def order_of(kept: str | None) -> Order | None:
    """The order as it is kept under `ORDER_KEY`."""
    return None if kept is None else Order(**known_fields(Order, json.loads(kept)))
