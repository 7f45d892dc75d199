"""A forked worker of local runs: it executes the run that it was forked for, and then further ones.

A worker executes one run at a time. Between two runs it waits for some seconds, with its connections, its
compiled statements and its loaded model. Its process is named after the run that it executes, so that any
other process sees whether that run is under way. `fork_server` forks workers and hands runs to them.
"""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batch_gpu.jobs import FAILURE_TAG

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from batch_gpu.dagster_private import ExecuteRunArgs

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RUN_ENDED = b"\n"
"""What a worker sends to the server after each run."""
# A run's arguments are some 2 kB.
_LONGEST_REQUEST = 1 << 20
# After that many runs a worker is replaced: what a library may leak stays bounded.
_MOST_RUNS = 100
# The kernel keeps 15 characters of a process's name.
_NAME_LENGTH = 15


@dataclass(frozen=True, slots=True)
class Work:
    """What a forked process does.

    Attributes:
        args: the run, as `dagster api execute_run` takes it.
        client: gets the worker's answer.
        server: for the worker's further runs.
        lost: how the run's worker ended, if this process is to report that; None to execute the run.
    """

    args: str
    client: socket.socket | None = None
    server: socket.socket | None = None
    lost: str | None = None


def work_on(work: Work, folder: Path) -> int:
    """Do a forked process's work, and what the server hands it afterwards; the process's exit status.

    Args:
        folder: of the server's socket.
    """
    if work.server is None:
        return execute(work)
    for _ in range(_MOST_RUNS):
        named = _be_named(_run_id(work.args), folder)
        _answer(work.client)
        status = execute(work)
        if not named or status != 0:
            return status
        _ignore_stops()
        _be_named("idle", folder)
        try:
            work.server.send(RUN_ENDED)
            args, client = _next_request(work.server)
        except OSError:
            break  # the server has ended, or wants no more
        work = Work(args, client, work.server)
        _expect_stops()
    return 0


def executes(pid: int, run_id: str) -> bool:
    """Whether a worker's process executes this run now."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n") == run_id[:_NAME_LENGTH]
    except OSError:
        return False


@contextmanager
def no_worker_switches(folder: Path) -> Iterator[None]:
    """During the block, no worker whose server's socket is in this folder goes on to another run."""
    with (folder / "switch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def execute(work: Work) -> int:
    """Execute the run, or report it as lost; an exit status."""
    from dagster import DagsterInstance

    from batch_gpu.dagster_private import ExecuteRunArgs, deserialize_value

    args = deserialize_value(work.args, ExecuteRunArgs)
    with (
        DagsterInstance.from_ref(args.instance_ref)
        if args.instance_ref
        else DagsterInstance.get() as instance
    ):
        if work.lost is not None:
            _report_lost(instance, args.run_id, work.lost)
            return 0
        return _execute_run(instance, args)


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did: tells it from a later one of its number.

    Returns:
        None if there is no such process, it only waits to be reaped, or the machine has no /proc.
    """
    try:
        # The name in brackets may hold anything; field 3, the state, is the first after it.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _execute_run(instance: "DagsterInstance", args: "ExecuteRunArgs") -> int:
    from dagster import DagsterRunStatus

    # What follows is the body of `dagster api execute_run` and its signals.
    from batch_gpu.dagster_private import capture_interrupts, setup_interrupt_handlers
    from batch_gpu.run_body import execute_run

    setup_interrupt_handlers()
    with capture_interrupts():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        run = instance.get_run_by_id(args.run_id)
        if run is not None and run.status == DagsterRunStatus.CANCELING:
            # Dagster takes a run that ends before it has begun for a failed one, and retries it.
            instance.report_run_canceled(run, "The run was canceled before its worker began.")
        elif run is not None:
            return execute_run(instance, run.run_id, set_exit_code_on_failure=False)
    return 0


def _report_lost(instance: "DagsterInstance", run_id: str, how: str) -> None:
    from dagster import DagsterRunStatus

    run = instance.get_run_by_id(run_id)
    if run is not None and run.status == DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, f"The run was canceled. {how}")
    elif run is not None and not run.is_finished:
        instance.add_run_tags(run_id, {FAILURE_TAG: "worker-lost"})
        instance.report_run_failed(run, f"worker-lost: {how}")


def _run_id(args: str) -> str:
    from batch_gpu.dagster_private import ExecuteRunArgs, deserialize_value

    return deserialize_value(args, ExecuteRunArgs).run_id


def _be_named(name: str, folder: Path) -> bool:
    """Name this process; False where the machine has no /proc, and a worker executes one run only."""
    with no_worker_switches(folder):
        try:
            Path("/proc/self/comm").write_text(name[:_NAME_LENGTH])
        except OSError:
            return False
    return True


def _answer(client: socket.socket | None) -> None:
    assert client is not None
    answer = {"pid": os.getpid(), "started": start_time(os.getpid())}
    with client, suppress(OSError):  # the client has given up; Dagster ignores a worker that comes too late
        client.sendall(json.dumps(answer).encode() + b"\n")


def _next_request(server: socket.socket) -> tuple[str, socket.socket]:
    """The next run, and the client to answer.

    Raises:
        OSError: there is none.
    """
    received, descriptors, _, _ = socket.recv_fds(server, 1 << 16, 1)
    if not descriptors:
        raise ConnectionError("The server wants no more runs of this worker.")
    client = socket.socket(fileno=descriptors[0])
    rest = "" if received.endswith(b"\n") else read_line(server)
    return received.decode().strip() + rest, client


def _ignore_stops() -> None:
    """Discard signals, also pending ones: what was to interrupt the last run must not interrupt the next."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _expect_stops() -> None:
    """Let signals wait again until the next run handles them."""
    # Not blocked before: a blocked signal waits although it is ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for each in STOP_SIGNALS:
        signal.signal(each, signal.default_int_handler)


def read_line(connection: socket.socket) -> str:
    """Read one line of a client.

    Raises:
        OSError: it does not arrive whole in time.
    """
    received = bytearray()
    while not received.endswith(b"\n"):
        part = connection.recv(65536)
        if not part or len(received) + len(part) > _LONGEST_REQUEST:
            raise ConnectionError("The request is not one line.")
        received += part
    return received.decode().strip()
