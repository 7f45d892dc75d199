"""Waiting in tests: poll with a deadline, never sleep and hope."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_for(what: str, poll: Callable[[], Result | None], deadline_s: float = 60.0) -> Result:
    """Return the first truthy answer of `poll`; fail, naming `what`, after the deadline."""
    give_up = time.monotonic() + deadline_s
    while not (answer := poll()):
        assert time.monotonic() < give_up, f"waited {deadline_s:.0f} s in vain for {what}"
        time.sleep(0.05)
    return answer
