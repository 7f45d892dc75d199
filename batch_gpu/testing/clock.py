"""The fake's time: runs with the real one, and can be put forward."""

import threading
import time


class FakeClock:
    """Real time plus what it was advanced by, so that its times compare with those of real processes."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        """Unix time in ms."""
        with self._lock:
            return int((time.time() + self._ahead_s) * 1000)

    def advance(self, seconds: float) -> None:
        """Let time pass at once."""
        if seconds < 0:
            raise ValueError(f"Time goes forward only, not by {seconds} s.")
        with self._lock:
            self._ahead_s += seconds
