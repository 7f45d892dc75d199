"""A process that imports a project once and forks the workers of local runs.

Importing Dagster and a project takes seconds of processor time and hundreds of megabytes; a forked worker
shares both. The server forks, hands out runs to its workers (`fork_worker`) and waits; it does nothing
else. Runs on AWS Batch start in containers of their own and do not need it.

    python -m batch_gpu.fork_server --socket PATH --preload my_project.definitions

The server stops accepting runs when its standard input ends, which is when the process that started it
ends, and when a source file that it has imported changes, because a new run must not execute old code. It
exits after its last worker.
"""

import argparse
import gc
import importlib
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

from batch_gpu.fork_worker import STOP_SIGNALS, Work, read_line, work_on

_REQUEST_TIMEOUT_S = 5.0
# Runs that wait follow one another within two seconds.
_IDLE_S = 10.0


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
            args = read_line(client)
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


def _fork() -> int:
    """Fork; in the child, stop signals are blocked until they are handled, and nothing is read from stdin."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
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
