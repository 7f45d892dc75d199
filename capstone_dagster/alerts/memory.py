"""What the sensor remembers from tick to tick: its cursor, JSON, bounded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from capstone_dagster.alerts.notices import Record
from capstone_dagster.alerts.reading import LOOK_BACK_S
from capstone_dagster.failures.run_events import Position

_VERSION = 1


@dataclass(slots=True)
class Memory:
    """How far was read, what is going on, and how sending goes.

    Attributes:
        successes_read: up to when runs that ended well were looked at, seconds since 1970; so are all times.
        letters_read: when the dead letters were looked at last; `letters` how many there were.
        refusals: how often in a row SNS did not take a notice, and `refusal` why it did not last.
        refused_since: since when.
        try_again: not before this time is SNS tried again.
    """

    position: Position
    record: Record = field(default_factory=Record)
    successes_read: float = 0.0
    letters_read: float = 0.0
    refusals: int = 0
    refusal: str = ""
    refused_since: float = 0.0
    try_again: float = 0.0

    @classmethod
    def read(cls, cursor: str | None, now: float) -> Memory:
        """What :meth:`write` wrote; without it, one that looks back over the last minutes."""
        kept = json.loads(cursor) if cursor else {}
        if kept.get("version") != _VERSION:
            return cls(Position(since=now - LOOK_BACK_S), successes_read=now)
        return cls(
            Position.from_json(kept["position"]),
            Record.from_json(kept["record"]),
            kept["successes_read"],
            kept["letters_read"],
            kept["refusals"],
            kept["refusal"],
            kept["refused_since"],
            kept["try_again"],
        )

    def write(self) -> str:
        """The cursor."""
        return json.dumps(
            {
                "version": _VERSION,
                "position": self.position.to_json(),
                "record": self.record.to_json(),
                "successes_read": self.successes_read,
                "letters_read": self.letters_read,
                "refusals": self.refusals,
                "refusal": self.refusal,
                "refused_since": self.refused_since,
                "try_again": self.try_again,
            },
            separators=(",", ":"),
        )
