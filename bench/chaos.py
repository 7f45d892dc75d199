"""Faults while clips stream through the whole local stack, and then: is every video analysed, once, the same?

PostgreSQL, AWS emulator, Dagster, launcher and workers are real; each fault is one function below. Clips are
uploaded all the while, a broken file among them. When the last fault is over and everything has settled, each
video is compared with one that was analysed before the first fault.

    .venv/bin/python -m bench.chaos [--only NAME ...] [--seed 1] [--minutes 20]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import dagster as dg
import psutil  # type: ignore[import-untyped]
import psycopg
from sqlalchemy.engine import make_url

from batch_gpu.local import live_process
from bench.interference import CutLine, Refusal, S3Gate, s3_gate
from capstone_dagster.alerts.inbox import look_into
from capstone_dagster.local.aws import client, ministack_server
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.dagster_services import SHARED_WORKSPACE
from capstone_dagster.local.demo import prepare
from capstone_dagster.local.postgres import DAGSTER_DATABASE, EVENT_DATABASE
from capstone_dagster.local.processes import ChildProcess
from capstone_dagster.local.stack import LocalStack, enter_environment, join_environment, local_stack
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.object_versions import delete_versions, versions_of
from capstone_dagster.storage.schema import FINAL_STATES
from capstone_dagster.storage.video_status import current_status

BROKEN = b"This is no video." * 4096
# A fault is of no use before a pass that it can meet.
TARGET_WITHIN_S = 120.0
DRAINED_WITHIN_S = 300.0
# Long enough to be met by a fault, short enough that what has waited is analysed in minutes.
CLIP_S = 8.0
# Lines of ours and of Dagster's own, and metrics.
_ORDINARY = re.compile(r'"level": "(DEBUG|INFO)"|"_aws"|\x1b\[34m(DEBUG|INFO)')
# To the millisecond: Dagster writes seconds, in which one thing can happen twice.
_TIMED = re.compile(r"\d\d:\d\d:\d\d[.,]\d{3}")


@dataclass
class Stage:
    """The running stack, and what stands between it and its services.

    Attributes:
        by_key: key → name of the fault during which it was uploaded.
        running: ends with the stack; what a fault starts again belongs to it.
        broken: keys of what is no video.
        denied: keys that intake may have met while S3 said that they are gone: it acknowledges these.
    """

    stack: LocalStack
    line: CutLine
    gate: S3Gate
    clip: bytes
    store: Database
    running: ExitStack
    by_key: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)

    def upload(self, fault: str, *, broken: bool = False) -> str:
        """Upload a clip of other bytes than any before."""
        key = f"gate/{len(self.by_key):03d}-{fault}.mp4"
        self.by_key[key] = fault
        if broken:
            self.broken.add(key)
        self.put(key, BROKEN if broken else self.clip)
        return key

    def put(self, key: str, body: bytes) -> None:
        # A box that players skip makes other bytes of the same film.
        unlike = (24).to_bytes(4, "big") + b"free" + os.urandom(16)
        s3 = client("s3", self.stack.aws.endpoint_url)
        s3.put_object(Bucket=self.stack.resources.raw_bucket, Key=key, Body=body + unlike)

    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """Rows of `current_status` by key, read past everything that is in the way."""
        return {row["key"]: row for row in self.store.transact(current_status)}

    def being_read(self) -> list[str]:
        """Keys of videos whose runs are at work."""
        running = [key for key, row in self.rows().items() if row["state"] == "running"]
        return [key for key in running if key not in self.broken]

    def worker(self) -> int:
        """The process of a run in the midst of its work."""
        return int(wait_for("a worker", lambda: next(iter(self.workers()), None), TARGET_WITHIN_S))

    def workers(self) -> list[int]:
        """The processes of all runs at work."""
        with dg.DagsterInstance.get() as instance:
            started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        return [pid for run in started if (pid := live_process(run)) is not None]

    def start_again(self, process: ChildProcess, *arguments: str) -> None:
        """What a supervisor does with a process of Dagster that was killed."""
        environment = join_environment(self.stack.environment)
        command = [sys.executable, "-m", *arguments]
        command += ["--workspace", str(Path(environment["DAGSTER_HOME"]) / SHARED_WORKSPACE)]
        with process.log.open("ab") as log:
            again = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.running.callback(again.wait)
        self.running.callback(again.terminate)

    def sql(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.admin(database), autocommit=True) as connection:
            connection.execute(statement)

    def admin(self, database: str) -> str:
        return self.stack.postgres.url(database, "psycopg").replace("+psycopg", "")


# --- the faults: each holds for as long as its block ---


@contextmanager
def database_stopped(stage: Stage) -> Iterator[None]:
    stage.line.cut()
    try:
        yield
    finally:
        stage.line.mend()


@contextmanager
def database_frozen(stage: Stage) -> Iterator[None]:
    with stopped(*family(stage.stack.postgres.process.pid)):
        yield


@contextmanager
def connections_ended_again_and_again(stage: Stage) -> Iterator[None]:
    over = threading.Event()

    def end_them() -> None:
        while not over.wait(0.5):
            stage.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name IN ('capstone', 'dagster')"
            )

    thread = threading.Thread(target=end_them)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def connections_used_up(stage: Stage) -> Iterator[None]:
    with ExitStack() as held:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                held.enter_context(psycopg.connect(stage.admin("postgres")))
        yield


@contextmanager
def database_read_only(stage: Stage) -> Iterator[None]:
    def writable(setting: str) -> None:
        for database in (EVENT_DATABASE, DAGSTER_DATABASE):
            stage.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = {setting}")
        stage.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name IN ('capstone', 'dagster')"
        )

    writable("on")
    try:
        yield
    finally:
        writable("off")


def locked(database: str, table: str) -> Callable[[Stage], AbstractContextManager[None]]:
    @contextmanager
    def fault(stage: Stage) -> Iterator[None]:
        with psycopg.connect(stage.admin(database)) as connection:
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()

    return fault


def refused(
    status: int, code: str, methods: Sequence[str] = ("GET", "PUT", "HEAD")
) -> Callable[[Stage], AbstractContextManager[None]]:
    @contextmanager
    def fault(stage: Stage) -> Iterator[None]:
        stage.gate.refusals += [Refusal(method, "", status, code) for method in methods]
        try:
            yield
        finally:
            stage.gate.refusals.clear()

    return fault


@contextmanager
def emulator_frozen(stage: Stage) -> Iterator[None]:
    with stopped(*family(stage.stack.aws.process.pid)):
        yield


def worker_gets(number: signal.Signals) -> Callable[[Stage], AbstractContextManager[None]]:
    @contextmanager
    def fault(stage: Stage) -> Iterator[None]:
        os.kill(stage.worker(), number)
        yield

    return fault


@contextmanager
def worker_frozen(stage: Stage) -> Iterator[None]:
    with stopped(stage.worker()):
        yield


@contextmanager
def daemon_frozen(stage: Stage) -> Iterator[None]:
    assert stage.stack.dagster is not None
    with stopped(stage.stack.dagster.daemon.pid):
        yield


@contextmanager
def code_server_killed(stage: Stage) -> Iterator[None]:
    assert stage.stack.dagster is not None
    os.kill(stage.stack.dagster.code_server.pid, signal.SIGKILL)  # its warden starts another one
    yield


@contextmanager
def daemon_killed(stage: Stage) -> Iterator[None]:
    assert stage.stack.dagster is not None
    daemon = stage.stack.dagster.daemon
    os.kill(daemon.pid, signal.SIGKILL)  # runs that it has launched end with it, as with its container
    daemon.stop()
    yield
    stage.start_again(daemon, "dagster._daemon", "run")


@contextmanager
def webserver_killed(stage: Stage) -> Iterator[None]:
    assert stage.stack.dagster is not None
    webserver = stage.stack.dagster.webserver
    os.kill(webserver.pid, signal.SIGKILL)
    yield
    port = stage.stack.dagster.url.rpartition(":")[2]
    stage.start_again(webserver, "capstone_dagster.webserver", "--host", "127.0.0.1", "--port", port)


@contextmanager
def emulator_restarted(stage: Stage) -> Iterator[None]:
    # In order, because the emulator is no SQS: what it has not written when it is killed is lost.
    stage.stack.aws.process.stop()
    yield
    port = int(stage.stack.aws.endpoint_url.rpartition(":")[2])
    state = stage.stack.state / "aws"
    stage.running.enter_context(ministack_server(state, state / "again.log", port))


@contextmanager
def killed_in_transaction(stage: Stage) -> Iterator[None]:
    """Every worker dies when one has written its events and has not committed them."""
    publishes = (
        "SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l USING (pid) "
        "WHERE a.wait_event_type = 'Lock' AND l.relation = 'capstone.events'::regclass "
        "AND l.mode = 'RowExclusiveLock' AND l.granted"
    )
    with (
        psycopg.connect(stage.admin(EVENT_DATABASE)) as lock,
        psycopg.connect(stage.admin(EVENT_DATABASE), autocommit=True) as look,
    ):
        lock.execute("LOCK TABLE capstone.outbox IN SHARE MODE")  # the last row of a publication goes there
        wait_for("a publication", lambda: (look.execute(publishes).fetchone() or (0,))[0], TARGET_WITHIN_S)
        for pid in stage.workers():
            os.kill(pid, signal.SIGKILL)
        lock.rollback()
    yield


@contextmanager
def disk_full(stage: Stage) -> Iterator[None]:
    """The disk of the folder for temporary files is full."""
    filler = Path(stage.stack.environment["TMPDIR"]) / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    try:
        yield
    finally:
        filler.unlink()


def clock(offset_s: int) -> Callable[[Stage], AbstractContextManager[None]]:
    @contextmanager
    def fault(stage: Stage) -> Iterator[None]:
        file = Path(stage.stack.environment["FAKETIME_TIMESTAMP_FILE"])
        file.write_text(f"{offset_s:+d}\n")
        try:
            yield
        finally:
            file.write_text("+0\n")

    return fault


@contextmanager
def bodies_cut_short(stage: Stage) -> Iterator[None]:
    stage.gate.cut_short = "/gate/"
    try:
        yield
    finally:
        stage.gate.cut_short = None


@contextmanager
def s3_slow(stage: Stage) -> Iterator[None]:
    stage.gate.delay_s = 5.0
    try:
        yield
    finally:
        stage.gate.delay_s = 0.0


@contextmanager
def two_daemons(stage: Stage) -> Iterator[None]:
    environment = join_environment(stage.stack.environment)
    place = Path(environment["DAGSTER_HOME"]) / SHARED_WORKSPACE
    with (stage.stack.logs / "second-daemon.log").open("wb") as log:
        second = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "--workspace", str(place)],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            second.terminate()
            second.wait()


@contextmanager
def object_overwritten(stage: Stage) -> Iterator[None]:
    for key in stage.being_read():
        stage.put(key, stage.clip)
    yield


@contextmanager
def object_deleted(stage: Stage) -> Iterator[None]:
    s3 = client("s3", stage.stack.aws.endpoint_url)
    bucket = stage.stack.resources.raw_bucket
    for key in stage.being_read():
        delete_versions(s3, bucket, versions_of(s3, bucket, key))
    yield


@dataclass(frozen=True)
class Fault:
    """One fault and how long it holds.

    Attributes:
        classes: failure classes that an alert may truly name because of it.
        final: those of them that rightly end an upload.
        uploads: whether S3 takes an upload meanwhile.
    """

    name: str
    hold_s: float
    inject: Callable[[Stage], AbstractContextManager[None]]
    classes: frozenset[str] = frozenset()
    final: frozenset[str] = frozenset()
    uploads: bool = True


DATABASE = frozenset({"database-unavailable"})
STORAGE = frozenset({"storage-unavailable"})
# A process that is killed can say nothing: its launcher sees that it is gone.
WORKER = frozenset({"worker-lost"})
MISSING = frozenset({"source-missing"})
FORBIDDEN = frozenset({"source-forbidden", "permission-denied"})
CODE = frozenset({"code-server-unreachable", "worker-lost"})

FAULTS = (
    Fault("database-stopped", 60, database_stopped, DATABASE),
    Fault("database-frozen", 30, database_frozen, DATABASE),
    Fault("connections-ended", 10, connections_ended_again_and_again, DATABASE),
    Fault("connections-used-up", 40, connections_used_up, DATABASE),
    Fault("database-read-only", 20, database_read_only, DATABASE),
    Fault("status-locked", 40, locked(EVENT_DATABASE, "capstone.video_status"), DATABASE),
    Fault("event-log-locked", 20, locked(DAGSTER_DATABASE, "event_logs"), DATABASE),
    Fault("runs-locked", 20, locked(DAGSTER_DATABASE, "runs"), DATABASE),
    Fault("s3-403", 15, refused(403, "AccessDenied"), FORBIDDEN, FORBIDDEN),
    Fault("s3-404", 15, refused(404, "NoSuchKey", ("GET", "HEAD")), MISSING, MISSING),
    Fault("s3-500", 20, refused(500, "InternalError"), STORAGE),
    Fault("s3-slow-down", 10, refused(503, "SlowDown"), STORAGE),
    Fault("s3-slow", 30, s3_slow, STORAGE),
    Fault("s3-truncated", 20, bodies_cut_short, STORAGE),
    Fault("emulator-frozen", 20, emulator_frozen, STORAGE, uploads=False),
    Fault("emulator-restarted", 15, emulator_restarted, STORAGE, uploads=False),
    Fault("worker-killed", 1, worker_gets(signal.SIGKILL), WORKER),
    Fault("worker-terminated", 1, worker_gets(signal.SIGTERM), WORKER),
    Fault("worker-frozen", 15, worker_frozen, WORKER),
    Fault("killed-in-transaction", 1, killed_in_transaction, WORKER),
    Fault("daemon-frozen", 20, daemon_frozen),
    Fault("daemon-killed", 10, daemon_killed, WORKER),
    Fault("webserver-killed", 10, webserver_killed),
    Fault("code-server-killed", 5, code_server_killed, CODE),
    Fault("two-daemons", 30, two_daemons),
    Fault("object-overwritten", 1, object_overwritten),
    Fault("object-deleted", 1, object_deleted, MISSING, MISSING),
    Fault("disk-full", 20, disk_full, frozenset({"disk-full"})),
    Fault("clock-ahead", 30, clock(300)),
    Fault("clock-behind", 30, clock(-300)),
)
_CLOCKS = {"clock-ahead", "clock-behind"}
_CLOCK_ENVIRONMENT = {"FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
# Debian's package libfaketime.
FAKETIME = Path(f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketime.so.1")


@cache
def sleeps_under_faketime() -> bool:
    """Whether Python works with the library: with 0.9.10 of Debian, `time.sleep` fails or never returns."""
    if not FAKETIME.exists():
        return False
    environment = os.environ | {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+0", **_CLOCK_ENVIRONMENT}
    sleep = [sys.executable, "-c", "import time; time.sleep(0.01)"]
    try:
        return (
            subprocess.run(
                sleep, env=environment, stderr=subprocess.DEVNULL, timeout=10, check=False
            ).returncode
            == 0
        )
    except subprocess.TimeoutExpired:
        return False


def injectable(fault: Fault) -> bool:
    """Whether this machine has what the fault needs."""
    if fault.name in _CLOCKS:
        return sleeps_under_faketime()
    return fault.inject is not disk_full or os.geteuid() == 0


def beginning(source: Path, target: Path, seconds: float) -> Path:
    """The first seconds of a video, its packets copied."""
    with av.open(str(source)) as whole, av.open(str(target), "w") as part:
        stream = whole.streams.video[0]
        copied = part.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.pts is not None and packet.pts * (stream.time_base or 0) < seconds:
                packet.stream = copied
                part.mux(packet)
    return target


# --- the campaign ---


@dataclass
class Outcome:
    """What became of the videos.

    Attributes:
        lost: decodable videos that are not analysed, or otherwise than without faults.
        duplicated: videos that were published more than once.
        wrong: what is no video and did not fail as such, and alerts that name no fault, or one too often.
        alerted: failure classes of the alerts, and how often each.
        logged: fault → bytes a second of warnings, errors and tracebacks, of all processes, while it held.
        doubled: lines of the logs that are the line before once more, its time included.
        drained_s: from the last fault until nothing was left to do; None if something was.
    """

    faults: int
    survived: int
    lost: dict[str, str]
    duplicated: list[str]
    wrong: list[str]
    alerted: Counter[str]
    drained_s: float | None
    logged: Mapping[str, float]
    doubled: int

    def __str__(self) -> str:
        return (
            f"chaos: {self.faults} faults, {self.survived} survived, {len(self.lost)} lost, "
            f"{len(self.duplicated)} duplicated"
        )


def campaign(stage: Stage, faults: Sequence[Fault], report: Callable[[str], None], over: float) -> Outcome:
    """Inject the faults one after the other, and see what became of the videos.

    Args:
        over: no further fault begins after this time of the monotonic clock.
    """
    first = stage.upload("none")
    try:
        wait_for("a first video", lambda: state_of(stage, first) == "done", DRAINED_WITHIN_S)
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {stage.rows().get(first, 'intake did not receive it')}") from error
    expected = events_of(stage, stage.rows()[first]["video_id"])
    assert expected, "a film without events proves nothing"
    done: dict[Fault, float] = {}
    for fault in faults:
        if time.monotonic() > over:
            report(f"no time is left for {fault.name}")
            continue
        stage.upload(fault.name)
        queued = {stage.upload(fault.name, broken=True)}
        try:
            wait_for("a run to meet the fault", lambda: "running" in states(stage), TARGET_WITHIN_S)
            report(f"{fault.name} for {fault.hold_s:.0f} s")
            with fault.inject(stage):
                if fault.uploads:
                    queued.add(stage.upload(fault.name))
                if fault.name == "s3-404":
                    stage.denied |= queued
                began, before = time.monotonic(), log_bytes(stage)
                time.sleep(fault.hold_s)
                done[fault] = (log_bytes(stage) - before) / (time.monotonic() - began)
        except TimeoutError as error:
            report(f"{fault.name} was not injected: {error}")
    return settled(stage, done, expected, report)


def settled(
    stage: Stage, done: Mapping[Fault, float], expected: Sequence[Any], report: Callable[[str], None]
) -> Outcome:
    began = time.monotonic()
    to_see = stage.by_key.keys() - stage.denied
    drained: float | None = None
    while drained is None and time.monotonic() - began < DRAINED_WITHIN_S:
        rows = stage.rows()
        unfinished = [
            row
            for row in rows.values()
            if row["state"] not in FINAL_STATES or "It is tried again" in (row["message"] or "")
        ]
        if to_see <= rows.keys() and not unfinished:
            drained = time.monotonic() - began
        time.sleep(0.5)
    rows, lost, duplicated, wrong = stage.rows(), {}, [], []
    final = {each for fault in done for each in fault.final}
    for key in stage.by_key:
        row = rows.get(key)
        if row is None and key not in to_see:
            continue
        if key in stage.broken:
            if row is None or row["failure_class"] != "undecodable-video":
                wrong.append(f"{key}: {row and (row['state'], row['failure_class'])}")
            continue
        if row is not None and row["state"] == "failed" and row["failure_class"] in final:
            continue
        if row is None or row["state"] != "done":
            lost[key] = "not seen" if row is None else f"{row['state']}: {row['message']}"
        elif events_of(stage, row["video_id"]) != expected:
            lost[key] = "other events than without faults"
        analyses = stage.store.transact(analyses_of, row["video_id"]) if row else []
        if len({each["upload_id"] for each in analyses}) < len(analyses):
            duplicated.append(key)
    sqs = client("sqs", stage.stack.aws.endpoint_url)
    told = look_into(sqs, stage.stack.resources.alert_inbox_url)
    failures = [each for each in told if each.attributes.get("kind") == "failure"]
    for each in failures:
        report(f"alert: {each.subject}")
    alerted = Counter(str(each.attributes.get("class")) for each in failures)
    for name, times in alerted.items():
        # Once an incident, and a fault is one; broken files are one of their own each time.
        causes = sum(name in fault.classes for fault in done)
        if name != "undecodable-video" and times > causes:
            wrong.append(f"{name} was alerted {times} times, for {causes} faults")
    for key, why in lost.items():
        report(f"lost: {key}: {why}")
    for text in (*(f"duplicated: {key}" for key in duplicated), *(f"wrong: {each}" for each in wrong)):
        report(text)
    harmed = {stage.by_key[key] for key in (*lost, *duplicated)}
    return Outcome(
        faults=len(done),
        survived=sum(fault.name not in harmed for fault in done),
        lost=lost,
        duplicated=duplicated,
        wrong=wrong,
        alerted=alerted,
        drained_s=drained,
        logged={fault.name: rate for fault, rate in done.items()},
        doubled=doubled_lines(stage),
    )


def log_bytes(stage: Stage) -> int:
    """Of what is not said of ordinary work: warnings, errors, tracebacks."""
    return sum(
        len(line)
        for path in stage.stack.logs.glob("*.log")
        for line in path.read_text(errors="replace").splitlines()
        if not _ORDINARY.search(line)
    )


def doubled_lines(stage: Stage) -> int:
    doubled = 0
    for path in stage.stack.logs.glob("dagster-*.log"):
        lines = path.read_text(errors="replace").splitlines()
        # Lines with a time; those of tracebacks repeat rightly.
        doubled += sum(one == two and bool(_TIMED.search(one)) for one, two in pairwise(lines))
    return doubled


def states(stage: Stage) -> set[str]:
    return {row["state"] for row in stage.rows().values()}


def state_of(stage: Stage, key: str) -> str | None:
    row = stage.rows().get(key)
    return None if row is None else str(row["state"])


def events_of(stage: Stage, video_id: str) -> list[tuple[Any, ...]]:
    """What does not depend on which run made them."""
    names = ("label", "start_ms", "end_ms", "detections", "first_frame", "last_frame")
    rows = stage.store.transact(current_events, video_id)
    return sorted(tuple(row[name] for name in names) for row in rows)


@contextmanager
def stage(folder: Path, *, clock: bool = False, disk: bool = False) -> Iterator[Stage]:
    """A stack whose processes reach PostgreSQL and S3 by a line and a gate; this process is its client.

    Args:
        clock: let a fault set Dagster's clock.
        disk: let a fault fill the disk of temporary files, which is a small one of its own.
    """
    with ExitStack() as running:
        parts: dict[str, Any] = {}

        def before_dagster(stack: LocalStack) -> None:
            prepare(stack)
            # The harness reads past the line.
            parts["store"] = Database(stack.environment["CAPSTONE_DATABASE_URL"])
            parts["line"] = line = CutLine(stack.postgres.port)
            port = int(stack.aws.endpoint_url.rpartition(":")[2])
            parts["gate"] = gate = running.enter_context(s3_gate(port))
            for name in ("CAPSTONE_DATABASE_URL", "DAGSTER_POSTGRES_URL"):
                url = make_url(stack.environment[name]).set(host="127.0.0.1", port=line.port)
                stack.environment[name] = url.render_as_string(hide_password=False)
            stack.environment["AWS_ENDPOINT_URL_S3"] = gate.url
            temporary = folder / "tmp"
            temporary.mkdir()
            if disk:
                subprocess.run(
                    ["mount", "-t", "tmpfs", "-o", "size=128m", "temporary", temporary], check=True
                )
                running.callback(subprocess.run, ["umount", "--lazy", temporary], check=True)
            stack.environment["TMPDIR"] = str(temporary)
            if clock:
                (folder / "clock").write_text("+0\n")
                stack.environment |= {
                    "LD_PRELOAD": str(FAKETIME),
                    "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
                    **_CLOCK_ENVIRONMENT,
                }
            # Every frame, so that a pass lasts long enough to be met.
            stack.environment["CAPSTONE_SAMPLE_FPS"] = "0"

        stack = running.enter_context(
            local_stack(folder / "state", webserver_port=None, before_dagster=before_dagster)
        )
        clip = beginning(DEMO_CLIP, folder / "clip.mp4", CLIP_S).read_bytes()
        before = dict(os.environ)
        running.callback(os.environ.update, before)
        running.callback(os.environ.clear)
        enter_environment(stack.environment)
        yield Stage(stack, parts["line"], parts["gate"], clip, parts["store"], running)


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Frozen processes: nothing is closed, nothing answers."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def family(pid: int) -> list[int]:
    """A process and all that it has started, the parent first."""
    parent = psutil.Process(pid)
    return [pid, *(child.pid for child in parent.children(recursive=True))]


def wait_for(what: str, poll: Callable[[], Any], within_s: float) -> Any:
    give_up = time.monotonic() + within_s
    while not (answer := poll()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {within_s:.0f} s in vain for {what}")
        time.sleep(0.25)
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", help="these faults alone", choices=[each.name for each in FAULTS]
    )
    parser.add_argument("--seed", type=int, default=1, help="of the faults' order")
    parser.add_argument("--minutes", type=float, default=20, help="after which no further fault begins")
    options = parser.parse_args()
    faults = [each for each in FAULTS if not options.only or each.name in options.only]
    random.Random(options.seed).shuffle(faults)
    left_out = [each.name for each in faults if not injectable(each)]
    faults = [each for each in faults if injectable(each)]
    began = time.monotonic()

    def report(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    if left_out:
        report(f"not possible here: {', '.join(left_out)}")
    clock = any(each.name in _CLOCKS for each in faults)
    with (
        tempfile.TemporaryDirectory(prefix="capstone-chaos-") as folder,
        stage(Path(folder), clock=clock, disk=any(each.inject is disk_full for each in faults)) as running,
    ):
        outcome = campaign(running, faults, report, began + options.minutes * 60)
        report(f"alerts: {dict(outcome.alerted)}")
        for name, rate in outcome.logged.items():
            report(f"{name}: {rate / 1000:.1f} kB/s of warnings and errors")
        report(f"{outcome.doubled} doubled lines of logs")
        report("not drained" if outcome.drained_s is None else f"drained in {outcome.drained_s:.0f} s")
        print(outcome)
    return int(bool(outcome.lost or outcome.duplicated or outcome.wrong or outcome.drained_s is None))


if __name__ == "__main__":
    sys.exit(main())
