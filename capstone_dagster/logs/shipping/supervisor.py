"""Runs a container's command: its output becomes JSON lines, its spool is sent to the end, its heart is felt.

    python -m capstone_dagster.logs.shipping.supervisor --service S --health-check daemon -- COMMAND

The command is started first, and its exit code is the one returned; whatever becomes of the rest, it runs as
if it had been started alone. What it has left in the spool is sent even after it was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from capstone_dagster.logs.standard_output import StandardOutput

if TYPE_CHECKING:
    from capstone_dagster.logs.redaction import Redaction
    from capstone_dagster.metrics.emission import Metrics
    from capstone_dagster.settings import Settings

Stream = Literal["stdout", "stderr"]

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# ECS kills a container 30 s after it has asked it to stop, unless told otherwise, and the command takes its
# part of them first: a daemon of Dagster's up to 15.
DRAIN_S = 8.0
# For what processes the command has left behind, and that still hold its pipes.
_LEFTOVERS_S = 2.0
# For reading the settings, on a machine that has just started.
_SETTING_UP_S = 8.0
# Lines that wait for a reader of standard output that stands still; what comes then is dropped and counted.
_MOST_WAITING_BYTES = 8 * 1024 * 1024
# A traceback is one line; so long it may be, and so long its next line may take.
_MOST_JOINED_LINES = 400
_PATIENCE_S = 0.3
_READ_BYTES = 64 * 1024
# An endless line is cut into pieces of so many bytes.
_LONGEST_LINE = 256 * 1024

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "WARN": 30, "ERROR": 40, "CRITICAL": 50, "FATAL": 50}
# Where consoles put a level: Dagster's ` - INFO - `, uvicorn's `INFO:`, Alembic's `INFO  [`, and `[INFO]`.
_LEVEL = re.compile(
    r"(?: - |^|\[)(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)(?= - |:|\]|\s+\[|\s{2,})", re.IGNORECASE
)
# What is no line of ours names no video; the launcher has told whose run this is, if it is one's.
_WHOSE = {"run_id": run_id} if (run_id := os.environ.get("BATCH_GPU_RUN_ID")) else {}
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TRACEBACK = "Traceback (most recent call last):"
_CRASH = re.compile(
    r"^(Fatal Python error|terminate called|Segmentation fault|Aborted|Bus error|Illegal instruction"
    r"|free\(\): |malloc\(\): |double free|corrupted |Out of memory|Killed\b|\*\*\* )"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code, or 128 + the signal that ended it, as a shell's."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    child = _Child()
    for number in FORWARDED:
        signal.signal(number, lambda received, _: child.send(received))
    try:
        outputs = child.start(options.command)
    except OSError as error:
        print(f"{options.command[0]} cannot be executed: {error.strerror}.", file=sys.stderr)
        return 126 if isinstance(error, PermissionError) else 127
    company = _Company(options, outputs)
    code = child.wait()
    company.leave(code)
    return code


class _Child:
    """The command's process. Reaps orphans too: as process 1 they are ours."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._early: list[int] = []

    def start(self, command: Sequence[str]) -> dict[Stream, int]:
        """Start it; the descriptors from which its output is read.

        Raises:
            OSError: it cannot be executed.
        """
        process = subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Its own group: Ctrl-C on a terminal, or a signal to a group, comes from here and not twice.
            process_group=0,
            preexec_fn=_die_with_the_supervisor,
        )
        process.returncode = 0  # from here on os.waitpid below is the only one that reaps
        assert process.stdout is not None
        assert process.stderr is not None
        self._pid = process.pid
        for number in self._early:
            self.send(number)
        return {"stdout": os.dup(process.stdout.fileno()), "stderr": os.dup(process.stderr.fileno())}

    def send(self, number: int) -> None:
        """Hand a signal on."""
        if self._pid is None:
            self._early.append(number)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def wait(self) -> int:
        """Reap until the command has ended."""
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == self._pid:
                self._pid = None
                self._early = []
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def _die_with_the_supervisor() -> None:
    """Between fork and exec: a supervisor that is killed outright leaves no command that nobody watches."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class _Company:
    """What goes beside the command: its lines, the shipper, the heartbeat. None of it may hold it up."""

    def __init__(self, options: argparse.Namespace, outputs: dict[Stream, int]) -> None:
        self._started = time.monotonic()
        self._program = " ".join(options.command[:3])[:100]
        # The lines at once, in threads that need nothing else: settings and AWS's library take a second.
        self._options = options
        self._stop = threading.Event()
        self._stop_beating = threading.Event()
        self._shipper: threading.Thread | None = None
        self._output = Output(1)
        self._relays = [
            Relay(descriptor, stream, options.service, _LEVELS[options.level], self._output)
            for stream, descriptor in outputs.items()
        ]
        for relay in self._relays:
            relay.start()
        self._say("INFO", "container.started", f"{self._program} started; {_resources()}")
        self._setting_up = threading.Thread(target=self._set_up, daemon=True, name="set-up")
        self._setting_up.start()

    def leave(self, code: int) -> None:
        """The command has ended: pass on the rest of what it said, and send what waits."""
        give_up = time.monotonic() + _LEFTOVERS_S
        for relay in self._relays:
            relay.join(max(0.0, give_up - time.monotonic()))
            relay.flush()
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        self._say(
            "INFO" if code == 0 else "ERROR",
            "container.ended",
            f"{self._program} ended with exit code {code}{_signal_name(code)} after "
            f"{time.monotonic() - self._started:.1f} s; its largest process held {peak_mb:.0f} MB",
        )
        self._stop_beating.set()
        self._setting_up.join(_SETTING_UP_S)
        self._stop.set()
        if self._shipper is not None:
            self._shipper.join(DRAIN_S + 1.0)
        self._output.close(_LEFTOVERS_S)

    def _set_up(self) -> None:
        try:
            self._set_all_up()
        except Exception as error:  # law: observing must not end what is observed
            self._say("ERROR", "supervisor.failed", f"Lines or heartbeats are not sent: {error!r}")
        finally:
            self._output.redact_by(None)

    def _set_all_up(self) -> None:
        from capstone_dagster.logs.redaction import Redaction, known_secrets
        from capstone_dagster.settings import ConfigurationError, read_settings

        settings: Settings | None = None
        with contextlib.suppress(ConfigurationError):  # the command says so itself
            settings = read_settings()
        self._output.redact_by(Redaction(known_secrets(settings)))
        if settings is None:
            return
        self._configure_logging()
        from capstone_dagster.metrics.emission import Metrics

        metrics = Metrics(settings, self._output)
        self._output.on_loss = lambda count: _count_dropped(metrics, count)
        if settings.log_spool is not None:
            self._start_shipper(settings, metrics)
        if self._options.health_check is not None:
            self._start_heartbeat(metrics)

    def _configure_logging(self) -> None:
        """The shipper's and the heartbeat's own words: as JSON lines among the command's."""
        from capstone_dagster.logs.json_lines import JsonFormatter

        handler = _OutputHandler(self._output)
        handler.setFormatter(JsonFormatter(self._options.service))
        root = logging.getLogger("capstone")
        root.addHandler(handler)
        root.setLevel(max(logging.INFO, _LEVELS[self._options.level]))
        root.propagate = False

    def _start_shipper(self, settings: Settings, metrics: Metrics) -> None:
        from capstone_dagster.logs.shipping.shipper import Shipper

        shipper = Shipper(Path(str(settings.log_spool)).expanduser(), settings, metrics=metrics)
        self._shipper = threading.Thread(
            target=shipper.run, args=(self._stop, DRAIN_S), daemon=True, name="shipper"
        )
        self._shipper.start()

    def _start_heartbeat(self, metrics: Metrics) -> None:
        from capstone_dagster.logs.shipping.heartbeats import health_check_of, send_heartbeats

        checks = {self._options.service: health_check_of(self._options.health_check)}
        threading.Thread(
            target=send_heartbeats, args=(checks, metrics, self._stop_beating), daemon=True, name="heartbeat"
        ).start()

    def _say(self, level: str, action: str, message: str) -> None:
        if _LEVELS[level] >= _LEVELS[self._options.level]:
            named = {"component": self._options.service, "action": action}
            self._output.wrap({"timestamp": _now(), "level": level, **named, "message": message})


class Relay(threading.Thread):
    """Reads one stream of the command; JSON lines pass as they are, others become some.

    Args:
        least: the level below which lines are dropped.
    """

    def __init__(self, descriptor: int, stream: Stream, service: str, least: int, output: Output) -> None:
        super().__init__(daemon=True, name=f"relay-{stream}")
        self._descriptor = descriptor
        self._stream = stream
        self._service = service
        self._least = least
        self._output = output
        self._joined: list[str] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while True:
                if self._joined and not select.select([self._descriptor], [], [], _PATIENCE_S)[0]:
                    self.flush()
                data = os.read(self._descriptor, _READ_BYTES)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(rest) > _LONGEST_LINE:
                    self._take(rest)
                    rest = b""
        if rest:
            self._take(rest)
        self.flush()

    def flush(self) -> None:
        """Pass on a traceback that may not be complete."""
        with self._lock:
            joined, self._joined = self._joined, []
        if joined:
            self._wrap("\n".join(joined), "ERROR")

    def _take(self, data: bytes) -> None:
        text = _COLOURS.sub("", data.decode(errors="replace")).rstrip("\r").rpartition("\r")[2]
        fields = _object(text)
        if fields is not None:
            if "_aws" in fields or _LEVELS.get(str(fields.get("level")).upper(), 100) >= self._least:
                self._output.write(text)
        elif self._joined or text.startswith(_TRACEBACK):
            with self._lock:
                self._joined.append(text)
            # The exception's own line is the first that is not indented.
            ended = len(self._joined) > 1 and not text.startswith((" ", "\t"))
            if ended or len(self._joined) >= _MOST_JOINED_LINES:
                self.flush()
        elif text.strip():
            self._wrap(text, level_of(text) or ("WARNING" if self._stream == "stderr" else "INFO"))

    def _wrap(self, text: str, level: str) -> None:
        if _LEVELS[level] < self._least:
            return
        self._output.wrap(
            {
                "timestamp": _now(),
                "level": level,
                "component": self._service,
                "action": "output",
                "message": text,
                "stream": self._stream,
            }
        )


class Output(StandardOutput):
    """Standard output, for several threads; one that takes nothing costs lines, and no time.

    All of this process writes here, its metrics too: a long line is more than one piece for the kernel, and
    another writer's line would come in between.

    Attributes:
        on_loss: told how many lines were dropped, once the rest is written again.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self.on_loss: Callable[[int], None] = lambda count: None
        self._redaction: Redaction | None = None
        self._redaction_known = threading.Event()
        self._waiting: deque[str | dict[str, str]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="output")
        self._thread.start()

    def write(self, line: str) -> bool:
        """Leave one line to be written; whether there was room for it."""
        return self._put(line, len(line))

    def wrap(self, fields: dict[str, str]) -> None:
        """Leave fields to be written as JSON, `message` without its secrets."""
        self._put(fields, len(fields["message"]))

    def redact_by(self, redaction: Redaction | None) -> None:
        """What was wrapped waits until this is said, the first time."""
        self._redaction = redaction or self._redaction
        self._redaction_known.set()

    def close(self, most_s: float) -> None:
        """Write what waits, for so long at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(most_s)

    def _put(self, line: str | dict[str, str], size: int) -> bool:
        with self._changed:
            if self._bytes + size > _MOST_WAITING_BYTES:
                self._dropped += 1
                return False
            self._bytes += size
            self._waiting.append(line)
            self._changed.notify()
            return True

    def _run(self) -> None:
        for line in self._lines():
            with contextlib.suppress(Exception):  # nobody reads any more: the command goes on
                data = self._text(line).encode(errors="replace") + b"\n"
                while data and self._descriptor is not None:
                    data = data[os.write(self._descriptor, data) :]

    def _text(self, line: str | dict[str, str]) -> str:
        if isinstance(line, str):
            return line
        self._redaction_known.wait(_SETTING_UP_S)
        if self._redaction is not None:
            line["message"] = self._redaction.text(line["message"])
        return json.dumps(line, ensure_ascii=False)

    def _lines(self) -> Iterator[str | dict[str, str]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                line = self._waiting.popleft()
                self._bytes -= len(line if isinstance(line, str) else line["message"])
                dropped, self._dropped = (0, self._dropped) if self._waiting else (self._dropped, 0)
            yield line
            if dropped:
                self.on_loss(dropped)


class _OutputHandler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.write(self.format(record))
        except Exception:
            self.handleError(record)


def level_of(text: str) -> str | None:
    """The level that a line of some console names, or shows; None if it does neither."""
    if _CRASH.match(text):
        return "CRITICAL"
    found = _LEVEL.search(text, 0, 200)
    if found is None:
        return None
    return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(found[1].upper(), found[1].upper())


def _resources() -> str:
    """What the container may use, as far as the kernel tells."""
    told = [f"{len(os.sched_getaffinity(0))} processors"]
    with contextlib.suppress(OSError, ValueError):
        told.append(f"{int(Path('/sys/fs/cgroup/memory.max').read_text()) / 2**20:.0f} MB of memory")
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return ", ".join([*told, f"{gpus} GPUs"])


def _signal_name(code: int) -> str:
    with contextlib.suppress(ValueError):
        return f" ({signal.Signals(code - 128).name})" if code > 128 else ""
    return ""


def _count_dropped(metrics: Metrics, count: int) -> None:
    from capstone_dagster.catalog.metrics import TELEMETRY_DROPPED

    metrics.add(TELEMETRY_DROPPED, count, channel="stdout")


def _object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    known = isinstance(fields, dict) and ("_aws" in fields or "level" in fields)
    return fields if known else None


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="supervisor", description="Run a container's command.")
    parser.add_argument("--service", required=True, help="what it is called in lines and metrics")
    parser.add_argument(
        "--level", choices=sorted(_LEVELS), default="INFO", help="the least that is passed on"
    )
    parser.add_argument(
        "--health-check",
        help="how to ask whether it works: a web server's address, or `daemon`; else no heartbeat",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not options.command:
        parser.error("a command was expected behind --")
    return options


if __name__ == "__main__":
    sys.exit(main())
