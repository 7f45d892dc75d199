"""A process that imports a project once and forks a worker for each local run.

Importing Dagster and a project takes seconds of processor time and hundreds of megabytes; a forked worker
shares both. The server has one thread and no connections, so forking it is safe, and it does nothing but
fork and wait. Runs on AWS Batch start in containers of their own and do not need it.

    python -m batch_gpu.fork_server --socket PATH --preload my_project.definitions

The server stops accepting runs when its standard input ends, which is when the process that started it
ends, and when a source file that it has imported changes, because a new run must not execute old code. It
exits after its last worker.
"""

import argparse
import gc
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
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


@dataclass(frozen=True, slots=True)
class Work:
    """What a forked process does.

    Attributes:
        args: the run, as `dagster api execute_run` takes it.
        lost: how the run's worker ended, if this process is to report that; None to execute the run.
    """

    args: str
    lost: str | None = None


@dataclass(slots=True)
class ForkServer:
    """Listens, forks and waits; see the module.

    Attributes:
        listener: a listening Unix socket.
        lifeline: a file descriptor that reaches its end when the server is no longer wanted.
    """

    listener: socket.socket
    lifeline: int
    _workers: dict[int, str] = field(default_factory=dict)
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
                for key, _ in events.select():
                    work = None
                    if key.fileobj is self.listener:
                        if sources != _source_files(sources):
                            self._retire(events)
                            break  # the client connects again, to a server that has imported the new code
                        work = self._fork_worker()
                    elif key.fileobj == self.lifeline:
                        if not os.read(self.lifeline, 4096):
                            self._retire(events)
                            break
                    else:
                        ended.recv(4096)
                        work = self._reap()
                    if work is not None:
                        return work
        return None

    def _retire(self, events: selectors.BaseSelector) -> None:
        if self._accepts:
            self._accepts = False
            events.unregister(self.listener)
            events.unregister(self.lifeline)
            self.listener.close()

    def _fork_worker(self) -> Work | None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return None
        with connection:
            connection.settimeout(_REQUEST_TIMEOUT_S)
            try:
                args = _line(connection)
            except OSError:
                return None  # the client has given up
            pid = _fork()
            if pid == 0:
                return Work(args)
            self._workers[pid] = args
            answer = {"pid": pid, "started": start_time(pid)}
            with suppress(OSError):  # the client has given up; Dagster ignores a worker that comes too late
                connection.sendall(json.dumps(answer).encode() + b"\n")
        return None

    def _reap(self) -> Work | None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            args = self._workers.pop(pid, None)
            how = _unexpected_end(pid, status)
            if args is not None and how is not None and _fork() == 0:
                return Work(args, lost=how)
        return None


def execute(work: Work) -> int:
    """Do a forked process's work; the process's exit status."""
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
        sys.exit(execute(work))


if __name__ == "__main__":
    main()
