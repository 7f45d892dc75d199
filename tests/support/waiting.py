"""Waiting in tests: poll with a deadline, never sleep and hope; on a slow machine deadlines are longer."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

Result = TypeVar("Result")

SLOWNESS_VARIABLE = "CAPSTONE_TEST_SLOWNESS"
# What the probe takes on two idle cores of the machine that the deadlines were chosen on.
REFERENCE_S = 0.19
# As many at once as the suite has workers, so that a single core and the load of others count as well.
PROBES = 2
# Between two polls: what takes a moment is seen at once, what takes long is not asked for all the time.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 0.05
PROBE = [sys.executable, "-I", "-c", "sum(number * number for number in range(4_000_000))"]


@cache
def slowness() -> float:
    """How many times longer than on the reference machine everything may take here, at least 1.

    Measured once, by spawning processes that compute; worker processes inherit the figure. Set
    CAPSTONE_TEST_SLOWNESS to decide it yourself.
    """
    if SLOWNESS_VARIABLE not in os.environ:
        measured = statistics.median(_probe_s() for _ in range(3)) / REFERENCE_S
        os.environ[SLOWNESS_VARIABLE] = f"{max(1.0, measured):.1f}"
    return float(os.environ[SLOWNESS_VARIABLE])


def scaled(seconds: float) -> float:
    """A deadline of the reference machine as one of this machine."""
    return seconds * slowness()


def wait_for(what: str, poll: Callable[[], Result | None], deadline_s: float = 60.0) -> Result:
    """Return the first truthy answer of `poll`; fail, naming `what`, after the deadline.

    Args:
        deadline_s: as on the reference machine; `scaled` here.
    """
    patience_s = scaled(deadline_s)
    give_up = time.monotonic() + patience_s
    pause_s = SHORTEST_PAUSE_S
    while not (answer := poll()):
        assert time.monotonic() < give_up, f"waited {patience_s:.0f} s in vain for {what}"
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return answer


def _probe_s() -> float:
    started = time.monotonic()
    processes = [subprocess.Popen(PROBE) for _ in range(PROBES)]
    for process in processes:
        process.wait()
    return time.monotonic() - started
