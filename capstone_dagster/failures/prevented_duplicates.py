"""How many requests for an analysis were found to be duplicates, by day: nothing else is kept of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from capstone_dagster.failures.cursors import Kept

if TYPE_CHECKING:
    import dagster as dg

_DAYS = 400

PREVENTED: Kept[dict[str, int]] = Kept("capstone/intake/prevented_duplicates", dict[str, int], dict)
"""Day in UTC, as 2026-01-31 → number; only intake's tick writes it."""


def count_prevented(instance: dg.DagsterInstance, number: int, now: float) -> None:
    """Add what a tick found."""
    day = datetime.fromtimestamp(now, UTC).date().isoformat()
    counts = PREVENTED.read(instance)
    counts[day] = counts.get(day, 0) + number
    PREVENTED.write(instance, {day: counts[day] for day in sorted(counts)[-_DAYS:]})
