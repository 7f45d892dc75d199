"""A process that imports a project once and forks the workers of local runs.

Importing Dagster and a project takes seconds of processor time and hundreds of megabytes; a forked worker
shares both. The server does nothing but fork, hand out runs and wait. Runs on AWS Batch start in containers
of their own and do not need it.

    python -m batch_gpu.fork_server --socket PATH --preload my_project.definitions

A worker executes one run at a time. Between two runs it waits for some seconds, with its connections, its
compiled statements and its loaded model. Its process is named after the run that it executes, so that any
other process sees whether that run is under way.

The server stops accepting runs when its standard input ends, which is when the process that started it
ends, and when a source file that it has imported changes, because a new run must not execute old code. It
exits after its last worker.
"""

import argparse
import fcntl
import gc
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from batch_gpu.jobs import FAILURE_TAG

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from batch_gpu.dagster_private import ExecuteRunArgs

# A run's arguments are some 2 kB.
_LONGEST_REQUEST = 1 << 20
_REQUEST_TIMEOUT_S = 5.0
_STOPS = (signal.SIGTERM, signal.SIGINT)
# Runs that wait follow one another within two seconds.
_IDLE_S = 10.0
# After that many runs a worker is replaced: what a library may leak stays bounded.
_MOST_RUNS = 100
_RUN_ENDED = b"\n"
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


@dataclass(slots=True)
class _Worker:
    """A worker as the server sees it: its run or its last one, and since when it waits for another."""

    args: str
    channel: socket.socket
    idle_since: float | None = None


@dataclass(slots=True)
class ForkServer:
    """Listens, forks, hands out runs and waits; see the module.

    Attributes:
        listener: a listening Unix socket.
        lifeline: a file descriptor that reaches its end when the server is no longer wanted.
    """

    listener: socket.socket
    lifeline: int
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _accepts: bool = True

    def serve(self) -> Work | None:
        """Serve until the server is no longer wanted and its last worker has ended.

        Returns:
            Twice or more, as `fork` does: None in the server, at its end; in each forked process its work.
        """
        sources = _source_files()
        with _child_signals() as ended, selectors.DefaultSelector() as events:
            events.register(self.listener, selectors.EVENT_READ)
            events.register(self.lifeline, selectors.EVENT_READ)
            events.register(ended, selectors.EVENT_READ)
            while self._accepts or self._workers:
                for key, _ in events.select(self._dismiss_idle()):
                    work = None
                    if key.fileobj is self.listener:
                        if sources != _source_files(sources):
                            self._retire(events)
                            break  # the client connects again, to a server that has imported the new code
                        work = self._take_request(events)
                    elif key.fileobj == self.lifeline:
                        if not os.read(self.lifeline, 4096):
                            self._retire(events)
                            break
                    elif key.fileobj is ended:
                        ended.recv(4096)
                        work = self._reap(events)
                    else:
                        self._hear(key.data, events)
                    if work is not None:
                        return work
        return None

    def _retire(self, events: selectors.BaseSelector) -> None:
        if self._accepts:
            self._accepts = False
            events.unregister(self.listener)
            events.unregister(self.lifeline)
            self.listener.close()

    def _dismiss_idle(self) -> float | None:
        """Let workers end that have waited long enough; seconds until the next one has."""
        now, patience = time.monotonic(), _IDLE_S if self._accepts else 0.0
        rest = None
        for worker in self._workers.values():
            if worker.idle_since is not None:
                left = worker.idle_since + patience - now
                if left > 0:
                    rest = min(left, rest or left)
                else:
                    worker.idle_since = None
                    with suppress(OSError):  # it has just been killed
                        worker.channel.shutdown(socket.SHUT_WR)  # the end of the worker's requests
        return rest

    def _take_request(self, events: selectors.BaseSelector) -> Work | None:
        try:
            client, _ = self.listener.accept()
        except OSError:
            return None
        client.settimeout(_REQUEST_TIMEOUT_S)
        try:
            args = _line(client)
        except OSError:
            client.close()  # the client has given up
            return None
        if self._hand_over(args, client):
            client.close()
            return None
        ours, theirs = socket.socketpair()
        pid = _fork()
        if pid == 0:
            for each in (ours, *(worker.channel for worker in self._workers.values())):
                each.close()  # a worker's channel ends when the server closes it, and not only when all do
            return Work(args, client, theirs)
        client.close()
        theirs.close()
        self._workers[pid] = _Worker(args, ours)
        events.register(ours, selectors.EVENT_READ, pid)
        return None

    def _hand_over(self, args: str, client: socket.socket) -> bool:
        """Give the run to the worker that has waited for the shortest time; False if none waits."""
        waiting = [worker for worker in self._workers.values() if worker.idle_since is not None]
        for worker in sorted(waiting, key=lambda worker: worker.idle_since or 0.0, reverse=True):
            worker.idle_since = None
            with suppress(OSError):  # it has just been killed
                socket.send_fds(worker.channel, [args.encode() + b"\n"], [client.fileno()])
                worker.args = args
                return True
        return False

    def _hear(self, pid: int, events: selectors.BaseSelector) -> None:
        """A worker's run has ended, or the worker itself, which `_reap` sees to."""
        worker = self._workers.get(pid)
        if worker is None:
            return  # it was reaped a moment ago
        try:
            ended = worker.channel.recv(1)
        except OSError:
            ended = b""
        worker.idle_since = time.monotonic() if ended else None
        if not ended:
            events.unregister(worker.channel)

    def _reap(self, events: selectors.BaseSelector) -> Work | None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            worker = self._workers.pop(pid, None)
            how = _unexpected_end(pid, status)
            if worker is not None:
                with suppress(KeyError):  # its end was heard before
                    events.unregister(worker.channel)
                worker.channel.close()
                if how is not None and _fork() == 0:
                    return Work(worker.args, lost=how)
        return None


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
            work.server.send(_RUN_ENDED)
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
    from batch_gpu.dagster_private import (
        capture_interrupts,
        execute_run_command_body,
        setup_interrupt_handlers,
    )

    setup_interrupt_handlers()
    with capture_interrupts():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        run = instance.get_run_by_id(args.run_id)
        if run is not None and run.status == DagsterRunStatus.CANCELING:
            # Dagster takes a run that ends before it has begun for a failed one, and retries it.
            instance.report_run_canceled(run, "The run was canceled before its worker began.")
        elif run is not None:
            execute_run_command_body(run.run_id, instance, lambda event: None, set_exit_code_on_failure=False)
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
    rest = "" if received.endswith(b"\n") else _line(server)
    return received.decode().strip() + rest, client


def _ignore_stops() -> None:
    """Discard signals, also pending ones: what was to interrupt the last run must not interrupt the next."""
    for each in _STOPS:
        signal.signal(each, signal.SIG_IGN)


def _expect_stops() -> None:
    """Let signals wait again until the next run handles them."""
    # Not blocked before: a blocked signal waits although it is ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    for each in _STOPS:
        signal.signal(each, signal.default_int_handler)


def _fork() -> int:
    """Fork; in the child, stop signals are blocked until they are handled, and nothing is read from stdin."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    return pid


@contextmanager
def _child_signals() -> Iterator[socket.socket]:
    """A socket that becomes readable when a child ends."""
    readable, writable = socket.socketpair()
    for end in (readable, writable):
        end.setblocking(False)
    previous = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writable.fileno(), warn_on_full_buffer=False)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, previous)
        readable.close()
        writable.close()


def _line(connection: socket.socket) -> str:
    """One line of a client.

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


def _unexpected_end(pid: int, status: int) -> str | None:
    """How a worker ended that has not reported its run's end; None if it has."""
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    if code < 0:
        return f"The run's process (pid {pid}) was killed by {signal.Signals(-code).name}."
    return f"The run's process (pid {pid}) ended with exit status {code}."


def _source_files(known: Mapping[str, int] | None = None) -> dict[str, int]:
    """The imported source files outside of the Python environment and when each was changed, in ns."""
    names = known
    if names is None:
        outside = (sys.prefix, sys.base_prefix)
        modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        names = {name: 0 for name in modules if name and not os.path.abspath(name).startswith(outside)}
    changed = {}
    for name in names:
        with suppress(FileNotFoundError):
            changed[name] = os.stat(name).st_mtime_ns
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m batch_gpu.fork_server", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where to listen; replaced if it exists")
    parser.add_argument("--preload", action="append", default=[], metavar="MODULE", help="imported at once")
    options = parser.parse_args()
    # Listen first: clients that connect meanwhile wait until the imports are done.
    listener = socket.socket(socket.AF_UNIX)
    options.socket.unlink(missing_ok=True)
    listener.bind(str(options.socket))
    listener.listen(128)
    for module in ("batch_gpu.dagster_private", *options.preload):
        try:
            importlib.import_module(module)
        except Exception:
            # A run that needs it fails with the same error, which its page then shows.
            logging.exception(f"{module} cannot be imported")
    gc.collect()
    gc.freeze()  # a worker's collections do not touch, and so do not copy, what was imported
    server = ForkServer(listener, lifeline=0)
    work = server.serve()
    listener.close()
    if work is not None:
        sys.exit(work_on(work, options.socket.parent))


if __name__ == "__main__":
    main()
