"""How long after a fault its notice arrives, and what it says: each failure class, end to end.

The local stack as shipped (dagster.yaml's intervals, PostgreSQL, the AWS emulator's S3, SQS and SNS), runs as
jobs of the fake AWS Batch. The event store alone is cut off by a TCP line between; S3 refuses by a gate
before it; capacity, container start, time limit and a killed worker are the fake Batch's; the GPU's failures
and the defect are a stand-in for the detector (bench/failing_location.py). All others are what they are in
life. Time is taken from the fault (where every run meets it: from the upload) to the notice's arrival in a
queue that is subscribed to the topic.

    .venv/bin/python bench/time_to_alert.py [--only CLASS ...] [--limit 1500] [--record]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dagster as dg
from sqlalchemy.engine import make_url

from batch_gpu.testing import FakeBatchServer, Machines, TimeLimit
from bench.interference import CutLine, Refusal, S3Gate, s3_gate
from bench.report import record, table
from capstone_dagster.alerts.inbox import Received, look_into
from capstone_dagster.local.aws import client
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.cloud import GPU_QUEUE, fake_batch
from capstone_dagster.local.demo import prepare
from capstone_dagster.local.stack import DagsterFiles, LocalStack, enter_environment, local_stack

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ".venv/bin/python bench/time_to_alert.py --record"
GOAL_S = 60.0
# For one class; several times the goal, so that a miss is measured and not only noticed.
DEADLINE_S = 240.0
MACHINES = Machines(gpus=1, count=2)
MODELS = "s3://capstone-derived/models/"
IMAGE = "fake/image:1"


class TooLate(Exception):
    """Something did not happen in time."""


@dataclass
class Stage:
    """The running stack and everything that can be done to it."""

    stack: LocalStack
    server: FakeBatchServer
    line: CutLine
    gate: S3Gate
    instance: dg.DagsterInstance
    clip: bytes
    fault: Path
    met: Path
    number: int = 0
    keys: list[str] = field(default_factory=list)

    @property
    def s3(self) -> Any:
        return client("s3", self.stack.aws.endpoint_url)

    @property
    def sqs(self) -> Any:
        return client("sqs", self.stack.aws.endpoint_url)

    def upload(self, body: bytes | None = None) -> float:
        """Upload a video that was never seen before; returns when that began."""
        self.number += 1
        key = f"gate/{self.number:02d}-{os.urandom(3).hex()}.mp4"
        self.keys.append(key)
        # A box that players skip makes other bytes of the same film.
        unlike = (24).to_bytes(4, "big") + b"free" + os.urandom(16)
        began = time.time()
        self.s3.put_object(Bucket="capstone-raw", Key=key, Body=self.clip + unlike if body is None else body)
        return began

    def run(self) -> dg.DagsterRun:
        """The run of the latest upload, once it is there."""
        wanted = dg.RunsFilter(tags={".dagster/capstone.s3_uri": f"s3://capstone-raw/{self.keys[-1]}"})
        return wait_for("the run", lambda: next(iter(self.instance.get_runs(wanted)), None))

    def job(self, *states: str) -> dict[str, Any]:
        """The Batch job of the latest upload's run, once it is in one of the states."""
        run_id = self.run().run_id

        def look() -> dict[str, Any] | None:
            jobs = self.server.batch.jobs()
            return next((job for job in jobs if run_id in job["jobName"] and job["status"] in states), None)

        return wait_for(f"its job to be {' or '.join(states)}", look)

    def begun(self) -> None:
        """Return once the latest upload's run has begun."""
        wait_for("the run to begin", lambda: self.run().status == dg.DagsterRunStatus.STARTED)

    def inbox(self) -> list[Received]:
        return look_into(self.sqs, self.stack.resources.alert_inbox_url)

    def send(self, body: str) -> float:
        """Send a message to the upload queue."""
        began = time.time()
        self.sqs.send_message(QueueUrl=self.stack.resources.queue_url, MessageBody=body)
        return began

    def define_job(self, timeout_s: int | None) -> None:
        """A further revision of the GPU job's definition; the latest is the one that is used."""
        properties = {
            "image": IMAGE,
            "resourceRequirements": [
                {"type": "VCPU", "value": "1"},
                {"type": "MEMORY", "value": "1024"},
            ],
        }
        request: dict[str, Any] = {
            "jobDefinitionName": "capstone-gpu",
            "type": "container",
            "containerProperties": properties,
        }
        if timeout_s is not None:
            request["timeout"] = {"attemptDurationSeconds": timeout_s}
        self.server.batch.handle("RegisterJobDefinition", request)


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        wanted: failure class of the notice, or the runbook's page where there is no class.
        inject: brings it about, and returns when; seconds since 1970.
        clear: takes it away again.
        recovers: the system itself starts the run again, which ends well once the fault is gone.
    """

    wanted: str
    how: str
    inject: Callable[[Stage], float]
    clear: Callable[[Stage], None] = lambda _: None
    recovers: bool = False


@dataclass(frozen=True)
class Measured:
    """What came of one fault.

    Attributes:
        alert_s: from the fault to the notice; None if none came in time.
        met_s: from the fault until a run first met it, where that is known.
        failed_s: from the fault to the run's failure; None if no run failed of it before the notice.
        again_s: from the fault's end until the video was analysed all the same; None if it is not expected.
    """

    case: Case
    alert_s: float | None = None
    met_s: float | None = None
    failed_s: float | None = None
    again_s: float | None = None
    notice: Received | None = None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="these classes or pages alone")
    parser.add_argument(
        "--limit", type=float, default=1500, help="seconds after which no further fault begins"
    )
    parser.add_argument("--record", action="store_true", help="write the result into bench/RESULTS.md")
    options = parser.parse_args()
    over = time.monotonic() + options.limit
    results: list[Measured] = []
    with stage() as set_up:
        set_up.upload()
        wait_for("a first video to be analysed", lambda: set_up.run().status == dg.DagsterRunStatus.SUCCESS)
        settle(set_up)
        for case in CASES:
            if options.only and case.wanted not in options.only:
                continue
            if time.monotonic() > over:
                print(f"No time is left for {case.wanted}.", file=sys.stderr)
                break
            results.append(measure(set_up, case))
            show(results[-1])
    late = [result for result in results if result.alert_s is None or result.alert_s > GOAL_S]
    if options.record:
        record("Time to alert", COMMAND, as_markdown(results), ("dagster", "ministack"))
    print(f"{len(results) - len(late)} of {len(results)} faults were told within {GOAL_S:.0f} s.")
    return int(bool(late))


def measure(set_up: Stage, case: Case) -> Measured:
    known = {notice.message_id for notice in set_up.inbox()}
    set_up.gate.first_refusal = None
    set_up.met.unlink(missing_ok=True)
    uploads = len(set_up.keys)
    try:
        began = case.inject(set_up)
        notice = wait_for("the notice", lambda: found(set_up, case, known), began + DEADLINE_S)
    except TooLate as error:
        print(f"{case.wanted}: {error}", file=sys.stderr)
        return Measured(case)
    finally:
        cleared = time.time()
        case.clear(set_up)
    met = set_up.gate.first_refusal
    if set_up.met.exists():
        met = set_up.met.stat().st_mtime
    failed = None
    if run := re.search(r"^Run: \S*?([0-9a-f-]{36})", notice.body, re.MULTILINE):
        failed_run = set_up.instance.get_run_record_by_id(run[1])
        failed = failed_run.end_time if failed_run else None
    again = None
    if case.recovers and len(set_up.keys) > uploads:
        again = wait_for("the video to be analysed after all", lambda: analyzed_at(set_up))
    settle(set_up)
    return Measured(
        case,
        notice.at.timestamp() - began,
        None if met is None else met - began,
        None if failed is None else failed - began,
        None if again is None else again - cleared,
        notice,
    )


def analyzed_at(set_up: Stage) -> float | None:
    """When the latest upload's run, or one that took its place, ended well."""
    wanted = dg.RunsFilter(
        tags={".dagster/capstone.s3_uri": f"s3://capstone-raw/{set_up.keys[-1]}"},
        statuses=[dg.DagsterRunStatus.SUCCESS],
    )
    return next((record.end_time for record in set_up.instance.get_run_records(wanted)), None)


def found(set_up: Stage, case: Case, known: set[str]) -> Received | None:
    for notice in set_up.inbox():
        # CloudWatch's alarms of the emulator come here too, without attributes.
        told = {notice.attributes.get("class"), notice.attributes.get("page")}
        is_new = notice.message_id not in known and notice.attributes.get("kind") == "failure"
        if is_new and case.wanted in told:
            return notice
    return None


def settle(set_up: Stage) -> None:
    """Wait until no run and no job is left: a worker that is idle would take the next fault's run."""
    busy = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    wait_for("runs to end", lambda: not set_up.instance.get_runs_count(dg.RunsFilter(statuses=busy)))
    wait_for(
        "jobs to end",
        lambda: all(job["status"] in ("SUCCEEDED", "FAILED") for job in set_up.server.batch.jobs()),
    )


def wait_for(what: str, poll: Callable[[], Any], until: float | None = None) -> Any:
    give_up = time.time() + DEADLINE_S if until is None else until
    while not (answer := poll()):
        if time.time() > give_up:
            raise TooLate(f"waited in vain for {what}")
        time.sleep(0.25)
    return answer


# --- the faults ---


def undecodable(set_up: Stage) -> float:
    return set_up.upload(b"This is no video." * 4096)


def missing(set_up: Stage) -> float:
    """Gone between intake and the download: the job gets its machine only afterwards."""
    set_up.server.batch.set_machines(GPU_QUEUE, Machines(gpus=1, count=0))
    set_up.upload()
    set_up.job("RUNNABLE")
    key = set_up.keys[-1]
    versions = set_up.s3.list_object_versions(Bucket="capstone-raw", Prefix=key)["Versions"]
    for version in versions:
        set_up.s3.delete_object(Bucket="capstone-raw", Key=key, VersionId=version["VersionId"])
    began = time.time()
    set_up.server.batch.set_machines(GPU_QUEUE, MACHINES)
    return began


def refused_by_s3(method: str, fragment: str, status: int, code: str) -> Callable[[Stage], float]:
    def inject(set_up: Stage) -> float:
        set_up.gate.refusals.append(Refusal(method, fragment, status, code))
        return set_up.upload()

    return inject


def open_gate(set_up: Stage) -> None:
    set_up.gate.refusals.clear()


def stand_in(fault: str) -> Callable[[Stage], float]:
    def inject(set_up: Stage) -> float:
        set_up.fault.write_text(fault)
        return set_up.upload()

    return inject


def no_stand_in(set_up: Stage) -> None:
    set_up.fault.unlink(missing_ok=True)


def model_gone(set_up: Stage) -> float:
    """A request that names a model which S3 has not, of a video that is there."""
    request = {
        "bucket": "capstone-raw",
        "key": set_up.keys[0],
        "model": f"{MODELS}gone-{os.urandom(2).hex()}.pt",
    }
    return set_up.send(json.dumps(request))


def database_away(set_up: Stage) -> float:
    set_up.line.cut()
    return time.time()


def database_away_while_publishing(set_up: Stage) -> float:
    set_up.upload()
    set_up.begun()
    set_up.line.cut()
    return time.time()


def database_back(set_up: Stage) -> None:
    """Also waits until that is told: the next outage is to be one of its own."""
    known = {notice.message_id for notice in set_up.inbox()}
    set_up.line.mend()
    began = time.time()

    def told() -> Received | None:
        return next(
            (
                notice
                for notice in set_up.inbox()
                if notice.message_id not in known
                and notice.attributes.get("kind") == "recovery"
                and notice.attributes.get("class") == "database-unavailable"
            ),
            None,
        )

    notice = wait_for("the end of the outage to be told", told)
    print(f"  its end was told {notice.at.timestamp() - began:.0f} s after it: {notice.subject}")


def no_capacity(set_up: Stage) -> float:
    """The fault is taken to be AWS Batch giving up, after the ten seconds that its queue waits here."""
    set_up.server.batch.queues[GPU_QUEUE].time_limits = (
        TimeLimit("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY", 10),
    )
    set_up.server.batch.set_machines(GPU_QUEUE, Machines(gpus=1, count=0))
    set_up.upload()
    set_up.job("FAILED")
    return time.time()


def capacity_again(set_up: Stage) -> None:
    set_up.server.batch.queues[GPU_QUEUE].time_limits = ()
    set_up.server.batch.set_machines(GPU_QUEUE, MACHINES)


def unpullable(set_up: Stage) -> float:
    set_up.server.batch.unpullable.add(IMAGE)
    return set_up.upload()


def pullable(set_up: Stage) -> None:
    set_up.server.batch.unpullable.clear()


def too_large(set_up: Stage) -> float:
    set_up.server.batch.set_machines(GPU_QUEUE, Machines(gpus=1, memory_mib=512))
    return set_up.upload()


def killed(set_up: Stage) -> float:
    set_up.fault.write_text("hang")
    set_up.upload()
    set_up.begun()
    job = set_up.job("RUNNING")
    began = time.time()
    set_up.server.batch.kill_container(job["jobId"])
    set_up.fault.unlink()
    return began


def out_of_time(set_up: Stage) -> float:
    """The fault is the limit's end, a minute after the container's start: Batch takes no shorter one."""
    set_up.define_job(60)
    set_up.fault.write_text("hang")
    set_up.upload()
    job = set_up.job("RUNNING")
    began = float(job["startedAt"]) / 1000 + 60
    time.sleep(max(0.0, began - time.time()))
    set_up.fault.unlink()
    return began


def time_again(set_up: Stage) -> None:
    set_up.define_job(None)
    no_stand_in(set_up)


def malformed(set_up: Stage) -> float:
    return set_up.send('{"bucket": "capstone-raw"')


CASES = (
    Case("undecodable-video", "a file that is no video is uploaded", undecodable),
    Case("source-missing", "the object is deleted before its download", missing),
    Case(
        "source-forbidden",
        "S3 answers 403 to the download",
        refused_by_s3("GET", "/capstone-raw/gate", 403, "AccessDenied"),
        open_gate,
    ),
    Case(
        "source-changed",
        "S3 answers 412 to the download",
        refused_by_s3("GET", "/capstone-raw/gate", 412, "PreconditionFailed"),
        open_gate,
    ),
    Case("gpu-out-of-memory", "the detector's stand-in", stand_in("gpu-out-of-memory"), no_stand_in, True),
    Case("gpu-error", "the detector's stand-in", stand_in("gpu-error"), no_stand_in, True),
    Case("model-unavailable", "a request names a model that S3 has not", model_gone),
    Case(
        "database-unavailable",
        "the event store's line is cut, nothing runs",
        database_away,
        database_back,
    ),
    Case(
        "database-unavailable",
        "the same, while a run is at work",
        database_away_while_publishing,
        database_back,
        True,
    ),
    Case(
        "storage-unavailable",
        "S3 answers 503 to whatever a run stores",
        refused_by_s3("PUT", "/capstone-derived/detections", 503, "SlowDown"),
        open_gate,
        True,
    ),
    Case(
        "permission-denied",
        "S3 answers 403 to whatever a run stores",
        refused_by_s3("PUT", "/capstone-derived/detections", 403, "AccessDenied"),
        open_gate,
    ),
    Case("timeout", "the job's time limit is over", out_of_time, time_again, True),
    Case("capacity", "AWS Batch gives up waiting for a machine", no_capacity, capacity_again, True),
    Case("container-start", "the image cannot be pulled", unpullable, pullable, True),
    Case("worker-lost", "the container is killed", killed, no_stand_in, True),
    Case("configuration", "no machine of the queue can hold the job", too_large, capacity_again),
    Case("internal", "a defect by the detector's stand-in", stand_in("internal"), no_stand_in),
    Case(
        "source-forbidden",
        "S3 answers 403 to intake's look-up: there is no run",
        refused_by_s3("HEAD", "/capstone-raw/gate", 403, "AccessDenied"),
        open_gate,
    ),
    Case("dead-letters", "a message that is no JSON", malformed),
)


# --- the stage and the report ---


@contextmanager
def stage() -> Iterator[Stage]:
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="capstone-alert-")))
        workspace = folder / "workspace.yaml"
        workspace.write_text("load_from:\n  - python_module: bench.failing_location\n")
        fault = folder / "fault"
        parts: dict[str, Any] = {}

        def before_dagster(stack: LocalStack) -> None:
            prepare(stack)
            parts["line"] = line = CutLine(stack.postgres.port)
            parts["gate"] = gate = running.enter_context(s3_gate(_port(stack.aws.endpoint_url)))
            database = make_url(stack.environment["CAPSTONE_DATABASE_URL"])
            stack.environment |= {
                "CAPSTONE_DATABASE_URL": database.set(host="127.0.0.1", port=line.port).render_as_string(
                    hide_password=False
                ),
                "AWS_ENDPOINT_URL_S3": gate.url,
                "CAPSTONE_REQUEST_MODELS": MODELS,
                "TIME_TO_ALERT_FAULT": str(fault),
                "TIME_TO_ALERT_MET": str(folder / "met"),
                "PYTHONPATH": str(ROOT),
            }
            parts["server"] = server = running.enter_context(fake_batch(stack))
            server.batch.set_machines(GPU_QUEUE, MACHINES)
            server.batch.scheduler.stop_grace_s = 10.0

        print("Starting the local stack", file=sys.stderr)
        stack = running.enter_context(
            local_stack(
                folder / "state",
                webserver_port=None,
                before_dagster=before_dagster,
                dagster_files=DagsterFiles(workspace, ROOT / "dagster.yaml"),
            )
        )
        enter_environment(stack.environment)
        clip = DEMO_CLIP.read_bytes()
        with dg.DagsterInstance.get() as instance:
            yield Stage(
                stack, parts["server"], parts["line"], parts["gate"], instance, clip, fault, folder / "met"
            )


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def show(result: Measured) -> None:
    if result.notice is None:
        print(f"{result.case.wanted}: no notice within {DEADLINE_S:.0f} s ({result.case.how})", flush=True)
        return
    print(f"{result.case.wanted}: {_seconds(result.alert_s)} s after the fault ({result.case.how})")
    print(f"  met {_seconds(result.met_s)}, failed {_seconds(result.failed_s)}, ", end="")
    print(f"analysed after all {_seconds(result.again_s)} s after its end", flush=True)
    print(f"  {result.notice.subject}")
    for line in result.notice.body.splitlines():
        print(f"    {line}")


def as_markdown(results: list[Measured]) -> str:
    rows = []
    for result in results:
        told = result.notice
        cause = re.search(r"^Cause: (.*)$", told.body, re.MULTILINE) if told else None
        rows.append(
            (
                f"`{result.case.wanted}`",
                result.case.how,
                *map(_seconds, (result.alert_s, result.met_s, result.failed_s, result.again_s)),
                told.subject.replace("|", "/") if told else "none",
                cause[1].replace("|", "/") if cause else "",
            )
        )
    seconds = [result.alert_s for result in results if result.alert_s is not None]
    within = sum(each <= GOAL_S for each in seconds)
    summary = (
        f"{within} of {len(results)} within {GOAL_S:.0f} s; median {statistics.median(seconds):.0f} s, "
        f"longest {max(seconds):.0f} s. Each once, one after the other. In the table, seconds from the "
        "fault: to the notice in the inbox; until a run first met it and until that run failed, its own "
        "retries included, where these are known; and from the fault's end until the video was analysed "
        "after all, by the system itself."
    )
    head = ("what", "how", "notice", "met", "run failed", "analysed after", "subject", "cause, as told")
    return f"{summary}\n\n{table(head, rows)}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
