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
from capstone_dagster.local.aws import client
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.dagster_services import SHARED_WORKSPACE
from capstone_dagster.local.demo import prepare
from capstone_dagster.local.postgres import DAGSTER_DATABASE, EVENT_DATABASE
from capstone_dagster.local.stack import LocalStack, enter_environment, join_environment, local_stack
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.schema import FINAL_STATES
from capstone_dagster.storage.video_status import current_status

BROKEN = b"This is no video." * 4096
# A fault is of no use before a pass that it can meet.
TARGET_WITHIN_S = 120.0
DRAINED_WITHIN_S = 300.0
# Long enough to be met by a fault, short enough that what has waited is analysed in minutes.
CLIP_S = 8.0


@dataclass
class Stage:
    """The running stack, and what stands between it and its services.

    Attributes:
        by_key: key → name of the fault during which it was uploaded.
        broken: keys of what is no video.
    """

    stack: LocalStack
    line: CutLine
    gate: S3Gate
    clip: bytes
    store: Database
    by_key: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

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

    def worker(self) -> int:
        """The process of a run in the midst of its work."""
        return int(wait_for("a worker", lambda: next(iter(self._workers()), None), TARGET_WITHIN_S))

    def _workers(self) -> list[int]:
        with dg.DagsterInstance.get() as instance:
            started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        return [pid for run in started if (pid := live_process(run)) is not None]

    def sql(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self._admin(database), autocommit=True) as connection:
            connection.execute(statement)

    def _admin(self, database: str) -> str:
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
                held.enter_context(psycopg.connect(stage._admin("postgres")))
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
        with psycopg.connect(stage._admin(database)) as connection:
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()

    return fault


def refused(status: int, code: str) -> Callable[[Stage], AbstractContextManager[None]]:
    @contextmanager
    def fault(stage: Stage) -> Iterator[None]:
        stage.gate.refusals += [Refusal(method, "", status, code) for method in ("GET", "PUT", "HEAD")]
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
    running = [key for key, row in stage.rows().items() if row["state"] == "running"]
    for key in running:
        if key not in stage.broken:
            stage.put(key, stage.clip)
    yield


@dataclass(frozen=True)
class Fault:
    """One fault and how long it holds."""

    name: str
    hold_s: float
    inject: Callable[[Stage], AbstractContextManager[None]]


FAULTS = (
    Fault("database-stopped", 60, database_stopped),
    Fault("database-frozen", 30, database_frozen),
    Fault("connections-ended", 10, connections_ended_again_and_again),
    Fault("connections-used-up", 40, connections_used_up),
    Fault("database-read-only", 20, database_read_only),
    Fault("status-locked", 40, locked(EVENT_DATABASE, "capstone.video_status")),
    Fault("event-log-locked", 20, locked(DAGSTER_DATABASE, "event_logs")),
    Fault("runs-locked", 20, locked(DAGSTER_DATABASE, "runs")),
    Fault("s3-500", 20, refused(500, "InternalError")),
    Fault("s3-slow-down", 10, refused(503, "SlowDown")),
    Fault("emulator-frozen", 20, emulator_frozen),
    Fault("worker-killed", 1, worker_gets(signal.SIGKILL)),
    Fault("worker-terminated", 1, worker_gets(signal.SIGTERM)),
    Fault("worker-frozen", 15, worker_frozen),
    Fault("daemon-frozen", 20, daemon_frozen),
    Fault("code-server-killed", 5, code_server_killed),
    Fault("two-daemons", 30, two_daemons),
    Fault("object-overwritten", 1, object_overwritten),
)


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
        wrong: what is no video, and did not fail as such.
        alerted: failure classes that operators were told of, and how often.
        drained_s: from the last fault until nothing was left to do; None if something was.
    """

    faults: int
    survived: int
    lost: dict[str, str]
    duplicated: list[str]
    wrong: list[str]
    alerted: Counter[str]
    drained_s: float | None

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
    wait_for("a first video", lambda: state_of(stage, first) == "done", DRAINED_WITHIN_S)
    expected = events_of(stage, stage.rows()[first]["video_id"])
    assert expected, "a film without events proves nothing"
    done: list[Fault] = []
    for fault in faults:
        if time.monotonic() > over:
            report(f"no time is left for {fault.name}")
            continue
        stage.upload(fault.name)
        stage.upload(fault.name, broken=True)
        wait_for("a run to meet the fault", lambda: "running" in states(stage), TARGET_WITHIN_S)
        report(f"{fault.name} for {fault.hold_s:.0f} s")
        with fault.inject(stage):
            if fault.inject is not emulator_frozen:
                stage.upload(fault.name)
            time.sleep(fault.hold_s)
        done.append(fault)
    return settled(stage, done, expected, report)


def settled(
    stage: Stage, done: Sequence[Fault], expected: Sequence[Any], report: Callable[[str], None]
) -> Outcome:
    began = time.monotonic()
    drained: float | None = None
    while drained is None and time.monotonic() - began < DRAINED_WITHIN_S:
        rows = stage.rows()
        unfinished = [
            row
            for row in rows.values()
            if row["state"] not in FINAL_STATES or "It is tried again" in (row["message"] or "")
        ]
        if stage.by_key.keys() <= rows.keys() and not unfinished:
            drained = time.monotonic() - began
        time.sleep(0.5)
    rows, lost, duplicated, wrong = stage.rows(), {}, [], []
    for key in stage.by_key:
        row = rows.get(key)
        if key in stage.broken:
            if row is None or row["failure_class"] != "undecodable-video":
                wrong.append(f"{key}: {row and (row['state'], row['failure_class'])}")
            continue
        if row is None or row["state"] != "done":
            lost[key] = "not seen" if row is None else f"{row['state']}: {row['message']}"
        elif events_of(stage, row["video_id"]) != expected:
            lost[key] = "other events than without faults"
        analyses = stage.store.transact(analyses_of, row["video_id"]) if row else []
        if len({each["upload_id"] for each in analyses}) < len(analyses):
            duplicated.append(key)
    for key, why in lost.items():
        report(f"lost: {key}: {why}")
    for each in (*(f"duplicated: {key}" for key in duplicated), *(f"wrong: {each}" for each in wrong)):
        report(each)
    harmed = {stage.by_key[key] for key in (*lost, *duplicated)}
    sqs = client("sqs", stage.stack.aws.endpoint_url)
    told = look_into(sqs, stage.stack.resources.alert_inbox_url)
    alerted = Counter(
        str(each.attributes.get("class")) for each in told if each.attributes.get("kind") == "failure"
    )
    return Outcome(
        len(done), sum(fault.name not in harmed for fault in done), lost, duplicated, wrong, alerted, drained
    )


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
def stage(folder: Path) -> Iterator[Stage]:
    """A stack whose processes reach PostgreSQL and S3 by a line and a gate; this process is its client."""
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
        yield Stage(stack, parts["line"], parts["gate"], clip, parts["store"])


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
    began = time.monotonic()

    def report(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="capstone-chaos-") as folder, stage(Path(folder)) as running:
        outcome = campaign(running, faults, report, began + options.minutes * 60)
        report(f"alerts: {dict(outcome.alerted)}")
        report("not drained" if outcome.drained_s is None else f"drained in {outcome.drained_s:.0f} s")
        print(outcome)
    return int(bool(outcome.lost or outcome.duplicated or outcome.wrong or outcome.drained_s is None))


if __name__ == "__main__":
    sys.exit(main())
