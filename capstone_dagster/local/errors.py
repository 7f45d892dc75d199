"""Errors of the local stack. Each message says what was expected, what happened and what to do."""

from pathlib import Path


class LocalStackError(Exception):
    """The local stack could not start, stay up or stop as it should."""


class StateInUseError(LocalStackError):
    """Another stack owns this state directory; `pid` is its process."""

    def __init__(self, state: Path, pid: int | None) -> None:
        self.state = state
        self.pid = pid
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"The state directory {state} belongs to one running stack at a time, and {holder} holds it. "
            "Stop that one first (Ctrl-C in its terminal), or use another checkout."
        )


class PortInUseError(LocalStackError):
    """The requested port is in use."""

    def __init__(self, port: int, wanted_by: str, holder: str | None, remedy: str) -> None:
        self.port = port
        taken = f"{holder} listens there already" if holder else "another process listens there already"
        super().__init__(f"The {wanted_by} needs port {port} on 127.0.0.1, but {taken}. {remedy}")


class ProcessEndedError(LocalStackError):
    """A process of the stack ended unexpectedly."""

    def __init__(self, name: str, code: int, log: Path, last_lines: str) -> None:
        self.name = name
        self.log = log
        how = f"by signal {code - 128}" if code > 128 else f"with exit code {code}"
        super().__init__(
            f"{name} should keep running but ended {how}. Its log is {log}; the last lines are:\n{last_lines}"
        )


class NotReadyError(LocalStackError):
    """A process of the stack runs but did not become usable within its time."""

    def __init__(self, name: str, waited_s: float, detail: str, log: Path, last_lines: str) -> None:
        self.name = name
        self.log = log
        super().__init__(
            f"{name} was not ready within {waited_s:.0f} s ({detail}). Its log is {log}; "
            f"the last lines are:\n{last_lines}"
        )


class CodeLocationError(LocalStackError):
    """Dagster runs but cannot load the definitions; the message is Dagster's own."""

    def __init__(self, location: str, reason: str, log: Path) -> None:
        self.location = location
        self.log = log
        super().__init__(
            f"Dagster could not load the code location {location}; correct this and start again "
            f"(log: {log}):\n{reason.strip()}"
        )
