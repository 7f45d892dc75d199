"""What is remembered of incidents that the alerts have forgotten: when each began, was announced, ended.

No causes: they may name a video, and a monthly report needs times alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from capstone_dagster.failures.cursors import Kept

# Some 120 bytes each; a service with one incident a day keeps more than a year of them.
_MOST = 500


@dataclass(frozen=True, slots=True)
class PastIncident:
    """An incident, over or not. Times are seconds since 1970.

    Attributes:
        page: its page of the runbook.
        opened: when the first of its failures happened.
        announced: when the first notice of it was sent; None: not yet, or nobody is to be notified.
        closed: since when it is over.
        extent: runs that failed, and the troubles' counts.
    """

    id: str
    page: str
    opened: float
    announced: float | None = None
    closed: float | None = None
    extent: int = 0


PAST_INCIDENTS: Kept[list[PastIncident]] = Kept("capstone/alerts/past_incidents", list[PastIncident], list)
"""In the order in which they began; only the reader of ended runs writes it."""


def merged(known: Sequence[PastIncident], seen: Iterable[PastIncident]) -> list[PastIncident]:
    """What is known with what was seen now; the first notice counts, and the oldest incidents go."""
    by_id = {each.id: each for each in known}
    for each in seen:
        before = by_id.get(each.id)
        first = each.announced if before is None or before.announced is None else before.announced
        by_id[each.id] = replace(each, announced=first)
    return sorted(by_id.values(), key=lambda each: each.opened)[-_MOST:]
