"""What one tick leaves to the next: the messages whose runs are not on record yet; and what it counted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from capstone_dagster.failures.cursors import from_json, to_json


@dataclass(slots=True)
class Pending:
    """A received message that waits for its runs to be on record.

    Attributes:
        run_keys: upload id → run key, of everything the message asked for.
        rejected: its malformed parts as (reason, body), to be copied when it is acknowledged.
        expires: when the receipt is worth nothing any more, seconds since 1970.
        request_id: of the request that it was received by.
    """

    message_id: str
    receipt: str
    run_keys: dict[str, str]
    expires: float
    rejected: list[tuple[str, str]] = field(default_factory=list)
    request_id: str = ""


@dataclass(slots=True)
class Counts:
    """What a tick did, for people."""

    received: int = 0
    new: int = 0
    duplicate: int = 0
    ignored: int = 0
    vanished: int = 0
    archived: int = 0
    awaited: int = 0
    malformed: int = 0
    acknowledged: int = 0
    left: int = 0

    def __str__(self) -> str:
        counts = [f"{number} {name}" for name, number in asdict(self).items() if number]
        return ", ".join(counts) or "no messages"


def read_cursor(cursor: str | None) -> list[Pending]:
    """What an earlier tick kept, also one of a later version that was rolled back."""
    return from_json(list[Pending], cursor) if cursor else []


def write_cursor(pending: Sequence[Pending]) -> str:
    """The cursor that :func:`read_cursor` reads."""
    return to_json(list(pending))
