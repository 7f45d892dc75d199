"""What the shipper tells of itself in the spool's folder: for `capstone doctor`, and for its successor."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATUS_FILE = "shipper.json"


@dataclass(slots=True)
class ChannelStatus:
    """How one log group, or the metrics, fare; times are seconds since 1970.

    Attributes:
        last_error: why the last attempt failed, None once one has succeeded again; `remedy` what to do.
        sent, dropped: lines that CloudWatch took, lines (or values) that were given up.
    """

    last_success: float | None = None
    last_failure: float | None = None
    last_error: str | None = None
    remedy: str | None = None
    sent: int = 0
    dropped: int = 0


@dataclass(slots=True)
class ShipperStatus:
    """What the shipper tells of itself in the spool's folder, for `capstone doctor`.

    Attributes:
        lost: lines that never came into the spool, because it was full or its disk refused.
        waiting_bytes: what the spool takes.
        told: how much of what was dropped and lost the metric TelemetryDropped knows.
        counted: of each writer's count of losses, how many are in `lost`.
    """

    pid: int = 0
    updated: float = 0.0
    waiting_bytes: int = 0
    lost: int = 0
    channels: dict[str, ChannelStatus] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)


def read_status(folder: Path) -> ShipperStatus | None:
    """What the shipper of this spool said last; None if there never was one."""
    try:
        found = json.loads((folder / STATUS_FILE).read_text())
        channels = {name: ChannelStatus(**each) for name, each in found.pop("channels").items()}
        return ShipperStatus(**found, channels=channels)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_status(folder: Path, status: ShipperStatus) -> None:
    """Leave the account, as far as the disk takes it."""
    replace_file(folder / STATUS_FILE, json.dumps(asdict(status)))


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all; nothing is said of a disk that does not take it."""
    with contextlib.suppress(OSError):  # a full disk: what was sent is sent again after a restart
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(text)
        unfinished.replace(path)
