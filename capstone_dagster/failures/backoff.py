"""When something that failed is tried again: at the next tick, then ever less often."""

from __future__ import annotations

import time
from dataclasses import dataclass

_FIRST_S = 5.0
_LONGEST_S = 60.0


@dataclass(slots=True)
class Backoff:
    """How something fails, for a cursor. Times are seconds since 1970.

    Attributes:
        times: how often in a row; 0: it does not.
        reason: why it failed last, in a sentence; `failure` is its class, where it has one.
        since: when it failed first.
        try_again: not before this time.
    """

    times: int = 0
    reason: str = ""
    failure: str = ""
    since: float = 0.0
    try_again: float = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it may be tried now."""
        return time.time() >= self.try_again

    def failed(self, reason: str, failure: str = "") -> None:
        """Note that it has failed, once more or for the first time."""
        now = time.time()
        self.since = self.since if self.times else now
        self.times += 1
        self.reason, self.failure = reason, failure
        # An exponent that grew with an outage of days would be too large for a float.
        self.try_again = now + min(_FIRST_S * 2 ** min(self.times - 1, 10), _LONGEST_S)

    def succeeded(self) -> None:
        """Forget that it failed."""
        self.times, self.reason, self.failure, self.since, self.try_again = 0, "", "", 0.0, 0.0
