"""What a life did, written line by line as it happens: what a killed process had said is on record."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.intake.soak.points import Point


@dataclass(frozen=True, slots=True)
class Tick:
    """One iteration of the daemon's loop."""

    seconds: float
    received: int
    acknowledged: int
    runs: int
    failed: bool


class JournalWriter:
    """Appends lines with one system call each, so that none is lost in a buffer."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def received(self, messages: dict[str, str]) -> None:
        """Message id → receipt."""
        self._write("received", messages=messages)

    def acknowledged(self, receipts: list[str], at: float) -> None:
        """Receipts that SQS confirmed, and when it was asked."""
        self._write("acknowledged", receipts=receipts, asked_at=at)

    def struck(self, point: Point) -> None:
        self._write("struck", point=point.value)

    def tick(self, tick: Tick) -> None:
        self._write(
            "tick",
            seconds=tick.seconds,
            received=tick.received,
            acknowledged=tick.acknowledged,
            runs=tick.runs,
            failed=tick.failed,
        )

    def _write(self, kind: str, **said: Any) -> None:
        os.write(self._file, (json.dumps({"kind": kind, "at": time.time(), **said}) + "\n").encode())


@dataclass(slots=True)
class Journal:
    """What was read of it so far.

    Attributes:
        receipts: message id → its latest receipt.
        acknowledged: message id → when it was first deleted.
        struck: the points that were met.
    """

    path: Path
    receipts: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, float] = field(default_factory=dict)
    struck: list[Point] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    _owners: dict[str, str] = field(default_factory=dict)
    _offset: int = 0

    def read(self) -> None:
        """Take in what was written since."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                self._take(json.loads(line))
            self._offset = file.tell()

    def _take(self, entry: dict[str, Any]) -> None:
        match entry.pop("kind"):
            case "received":
                for message_id, receipt in entry["messages"].items():
                    self._owners[receipt] = message_id
                    self.receipts[message_id] = receipt
            case "acknowledged":
                for receipt in entry["receipts"]:
                    self.acknowledged.setdefault(self._owners[receipt], entry["asked_at"])
            case "struck":
                self.struck.append(Point(entry["point"]))
            case "tick":
                del entry["at"]
                self.ticks.append(Tick(**entry))
