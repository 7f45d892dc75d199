"""Run one command so that nothing of it outlives its owner, even when the owner is killed outright.

This file is a program of its own (standard library only, started by path), not a module to import: it
stands between the stack and each of its processes. A pipe on standard input is the owner's life: when it
closes, be it on purpose or because the owner was killed, the command is asked to stop, and after its
grace every process that descends from it is ended. Linux only: it adopts orphans as a "child subreaper",
because Dagster's code servers and runs are grandchildren that do not end with the daemon.
"""

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
CAPABILITIES_VERSION = 0x20080522
# Reading and passing anywhere; containers often lack it and have the second, which includes it.
CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE = 2, 1
# Left-overs of a command that ended have nothing to finish but their own interrupt handlers: a Dagster run
# needs about a second to report that it was interrupted.
LEFT_OVERS_GRACE_S = 5.0
LIBC = ctypes.CDLL(None, use_errno=True)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        child = start(options)
    except OSError as error:
        os.write(options.report_fd, f"error {error}".encode())
        return 127
    os.write(options.report_fd, f"pid {child}".encode())
    os.close(options.report_fd)
    ward = Ward(child, woken)
    while ward.ended_by_itself():
        if options.restart_after is None or ward.released(options.restart_after):
            break
        # What the command started goes on: a run outlives the code server that it was launched by.
        ward.child = start(options)
    else:
        ward.send([ward.child], options.stop_signal)
        ward.wait(lambda: ward.child in ward.codes, options.grace)
    ward.end_everything(min(LEFT_OVERS_GRACE_S, options.grace))
    return ward.codes.get(ward.child, 128 + signal.SIGKILL)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run one command that ends with its owner.")
    parser.add_argument("--report-fd", type=int, required=True, help="where the command's pid is written")
    parser.add_argument("--stop-signal", type=int, required=True)
    parser.add_argument("--grace", type=float, required=True, help="seconds between the signal and SIGKILL")
    parser.add_argument(
        "--restart-after", type=float, help="start a command that ends by itself again, after these seconds"
    )
    parser.add_argument("--uid", type=int, help="run the command as this user")
    parser.add_argument("--gid", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    return options


def start(options: argparse.Namespace) -> int:
    """Start the command in its own session and return its pid."""

    def last_before_the_command() -> None:
        if options.uid is not None:
            keep_the_way_free()
        # After the change of user, which would clear it. Covers the one case that the pipe cannot: the
        # warden itself being killed.
        LIBC.prctl(PR_SET_PDEATHSIG, options.stop_signal, 0, 0, 0)

    if options.uid is not None:
        LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    process = subprocess.Popen(
        options.command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=last_before_the_command,
        user=options.uid,
        group=options.gid,
        extra_groups=None if options.gid is None else [],
    )
    process.returncode = 0  # from here on os.waitpid below is the only one that reaps
    return process.pid


def keep_the_way_free() -> None:
    """Of root's powers, keep for the other user only that of passing through folders it may not enter.

    A checkout often lies where only root may go (/root, a `mktemp -d`). Opening those folders for everybody
    would change what is not ours, and others (pytest for one) close them again while the command runs.
    """
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; lower 32 bits, then upper
    LIBC.capget(header, sets)
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        bit = 1 << capability
        if sets[1] & bit:
            LIBC.capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0))
            LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)
            return


class Ward:
    """The command and all that descends from it."""

    def __init__(self, child: int, woken: int) -> None:
        self.child = child
        self.woken = woken
        self.codes: dict[int, int] = {}
        self.childless = False

    def ended_by_itself(self) -> bool:
        """Wait until the command ends (True) or its owner lets go of it (False)."""
        while True:
            self.reap()
            if self.child in self.codes:
                return True
            if self._asked_to_stop(None):
                return False

    def released(self, seconds: float) -> bool:
        """Whether the owner lets go of the command within these seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._asked_to_stop(left):
                return True
            self.reap()
        return False

    def _asked_to_stop(self, timeout_s: float | None) -> bool:
        """Wait for one wake-up; whether it was the owner's end or a signal to stop."""
        readable, _, _ = select.select([sys.stdin.fileno(), self.woken], [], [], timeout_s)
        if sys.stdin.fileno() in readable:
            return True
        received = set(os.read(self.woken, 4096)) if self.woken in readable else set()
        return bool(received & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

    def end_everything(self, grace_s: float) -> None:
        self.send(descendants(), signal.SIGTERM)
        self.wait(lambda: self.childless, grace_s)
        while not self.childless:
            self.send(descendants(), signal.SIGKILL)
            self.wait(lambda: self.childless, 1.0)

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.reap()
        while not done() and (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self.woken], [], [], left)
            if readable:
                os.read(self.woken, 4096)
            self.reap()

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            self.childless = False
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self.codes[pid] = code if code >= 0 else 128 - code

    def send(self, pids: Sequence[int], number: int) -> None:
        for pid in pids:
            if pid not in self.codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)


def descendants() -> list[int]:
    """Every living process below this one, parents before children."""
    children: dict[int, list[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", errors="replace") as stat:
            # The name in parentheses may hold anything; state and parent follow its last parenthesis.
            children.setdefault(int(stat.read().rsplit(")", 1)[1].split()[1]), []).append(int(pid))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
