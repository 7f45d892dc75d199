"""What an operator ordered of intake: the command leaves it, the sensor's next tick follows it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Literal

import dagster as dg

from capstone_dagster.failures.cursors import known_fields
from capstone_dagster.intake.breaker import Order

_KEY = "capstone/intake/order"


def give_order(
    instance: dg.DagsterInstance, wanted: Literal["pause", "resume"], *, by: str, why: str
) -> Order:
    """Leave an order in Dagster's storage, where it survives restarts; the next tick follows it.

    Args:
        by, why: for whoever asks later.
    """
    order = Order(wanted, by=by, why=why, at=time.time())
    instance.daemon_cursor_storage.set_cursor_values({_KEY: json.dumps(asdict(order))})
    return order


def last_order(instance: dg.DagsterInstance) -> Order | None:
    """The last order that was given, followed or not; None if there was none."""
    kept = instance.daemon_cursor_storage.get_cursor_values({_KEY}).get(_KEY)
    return None if kept is None else Order(**known_fields(Order, json.loads(kept)))
