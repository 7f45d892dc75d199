"""What alerts remember from tick to tick, within the cursor of the reader of ended runs: bounded JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from capstone_dagster.alerts.incidents import Record
from capstone_dagster.failures.cursors import known_fields


@dataclass(slots=True)
class Memory:
    """What is going on, and how sending goes. Times are seconds since 1970.

    Attributes:
        looked: when troubles were looked for last.
        letters_read: when the dead letters were counted last.
        refusals: how often in a row SNS did not take a notice, and `refusal` why it did not last.
        refused_since: since when.
        try_again: not before this time is SNS tried again.
    """

    record: Record = field(default_factory=Record)
    looked: float = 0.0
    letters_read: float = 0.0
    refusals: int = 0
    refusal: str = ""
    refused_since: float = 0.0
    try_again: float = 0.0

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Memory:
        """What :meth:`to_json` made, be it of a later version that was rolled back."""
        return cls(**known_fields(cls, kept) | {"record": Record.from_json(kept["record"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"record": self.record.to_json()}
