"""The state directory of a stack: its owner, and the environment that other terminals need to join it."""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from capstone_dagster.local.errors import StateInUseError

LOCK_FILE = "lock"
ENVIRONMENT_FILE = "env"
# After a SIGKILL of its owner a stack still stops itself in order; the longest part is the emulator writing
# its messages (30 s) and the ends of left-overs.
HANDOVER_DEADLINE_S = 60.0


@contextmanager
def own_state(state: Path) -> Iterator[int]:
    """Own `state` until the end of the block; yields the lock's descriptor.

    Processes that were given the descriptor keep the ownership until they ended, so that the next owner
    never meets a server of the last one.

    Raises:
        StateInUseError: a living process owns it; the error has its pid.
    """
    state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(state, descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def clear_state(state: Path) -> None:
    """Delete everything below `state` but the lock, which the caller holds."""
    for path in state.iterdir():
        if path.name == LOCK_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_environment(state: Path, environment: Mapping[str, str]) -> Path:
    """Write `<state>/env`: KEY=value lines that a shell can source, readable by the owner only."""
    path = state / ENVIRONMENT_FILE
    unfinished = state / f"{ENVIRONMENT_FILE}.unfinished"
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    lines = ["# The running local stack; use it with: set -a; . " + shlex.quote(str(path)) + "; set +a"]
    lines += [f"{name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    unfinished.write_text("\n".join(lines) + "\n")
    unfinished.replace(path)
    return path


def remove_environment(state: Path) -> None:
    (state / ENVIRONMENT_FILE).unlink(missing_ok=True)


def read_environment(state: Path) -> dict[str, str] | None:
    """The variables of the stack that runs on `state`, or None if none runs, left-over file or not."""
    if owner(state) is None:
        return None
    try:
        text = (state / ENVIRONMENT_FILE).read_text()
    except OSError:
        return None
    words = shlex.split(text, comments=True)
    return dict(word.split("=", 1) for word in words if re.match(r"[A-Za-z_]\w*=", word))


def owner(state: Path) -> int | None:
    """The pid of the process that runs a stack on `state`, or None."""
    try:
        descriptor = os.open(state / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        if _try_lock(descriptor, fcntl.LOCK_SH):
            return None
        return _living_holder(descriptor)
    finally:
        os.close(descriptor)


def _lock(state: Path, descriptor: int) -> None:
    give_up = time.monotonic() + HANDOVER_DEADLINE_S
    while not _try_lock(descriptor, fcntl.LOCK_EX):
        holder = _living_holder(descriptor)
        if holder is not None or time.monotonic() > give_up:
            raise StateInUseError(state, holder)
        time.sleep(0.1)  # its owner is dead, what it started is stopping


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _living_holder(descriptor: int) -> int | None:
    with contextlib.suppress(ValueError, psutil.Error):
        pid = int(os.pread(descriptor, 32, 0))
        if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            return pid
    return None
