"""What the pipeline writes, for tests of those who read it: uploads, ticks and runs in their own process.

`record` runs this file as a program on a local stack without a daemon, and collects the lines that it wrote
to standard output, each with the group that awslogs would carry it to.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstone_dagster.local.awslogs import group_of
from capstone_dagster.run_tags import S3_URI_TAG
from tests.support.waiting import scaled

GOOD, BROKEN, FORBIDDEN = "gate/20250526_193726.mp4", "gate/broken.mp4", "yard/forbidden.mp4"
EXTERNAL_ID = "84"
MONITORING = "The run's machine has ended."
# Some 20 s on two idle cores, of which a first export of the model takes a third.
_DEADLINE_S = 240


@dataclass(frozen=True)
class Written:
    """A line, and the log group that it is written to."""

    group: str
    text: str

    @property
    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


def record(clip: Path, model_cache: Path) -> list[Written]:
    """Everything that a good upload, a broken and a forbidden one, and an outage leave in the logs."""
    from capstone_dagster.local.stack import join_environment, local_stack

    # Not below pytest's own folder: run as root PostgreSQL is another user, who may not enter there.
    with tempfile.TemporaryDirectory(prefix="capstone-test-") as folder:
        with local_stack(Path(folder) / "stack", with_dagster=False) as stack:
            environment = {
                **join_environment(stack.environment),
                "CAPSTONE_LOG_FORMAT": "json",
                "CAPSTONE_MODEL_CACHE": str(model_cache),
                "CAPSTONE_SAMPLE_FPS": "1",
                "CAPSTONE_POLL_WAIT_S": "1",
            }
            done = subprocess.run(
                [sys.executable, "-m", "tests.support.pipeline_run", str(clip)],
                cwd=Path(__file__).parents[2],
                env=environment,
                capture_output=True,
                text=True,
                timeout=scaled(_DEADLINE_S),
                check=False,
            )
        assert done.returncode == 0, done.stderr[-4000:]
    lines = [Written(group_of(line, "dagster-code-server") or "", line) for line in done.stdout.splitlines()]
    # Metrics travel the same way; they are no lines.
    return [line for line in lines if line.text.startswith("{") and "_aws" not in line.fields]


# --- the program ---


def main(clip: Path) -> None:
    import dagster as dg

    from capstone_dagster.definitions import defs, services
    from capstone_dagster.intake.sensor import upload_sensor
    from capstone_dagster.logs.run_records import write_run_records
    from tests.support.ended_runs import judge

    services.database.migrate()
    services.s3.put_object(
        Bucket="capstone-raw", Key=GOOD, Body=clip.read_bytes(), Metadata={"video-id": EXTERNAL_ID}
    )
    services.s3.put_object(Bucket="capstone-raw", Key=BROKEN, Body=b"this is no video")
    services.s3.put_object(Bucket="capstone-raw", Key=FORBIDDEN, Body=clip.read_bytes())
    with dg.DagsterInstance.get() as instance:

        def tick(cursor: str | None = None) -> dg.SensorResult:
            context = dg.build_sensor_context(
                instance=instance, cursor=cursor, resources={"services": services}, definitions=defs
            )
            result = upload_sensor(context)
            assert isinstance(result, dg.SensorResult)
            return result

        def run(request: dg.RunRequest) -> dg.DagsterRun:
            job = defs.resolve_job_def("analyze_upload")
            instance.add_dynamic_partitions("videos", [str(request.partition_key)])
            ran = job.execute_in_process(
                partition_key=request.partition_key,
                run_config=dict(request.run_config),
                tags=dict(request.tags),
                instance=instance,
                raise_on_error=False,
            )
            return ran.dagster_run

        requests: dict[str, dg.RunRequest] = {}
        give_up = time.monotonic() + scaled(60)
        with _forbidden(services.s3, FORBIDDEN):
            while len(requests) < 2:
                assert time.monotonic() < give_up, "waited in vain for the uploads' messages"
                for request in tick().run_requests or []:
                    uri = request.tags[S3_URI_TAG]
                    requests[uri.removeprefix("s3://capstone-raw/")] = request

        def wait_for_the_database() -> None:
            import sqlalchemy as sa

            with services.database.engine.connect() as connection:
                connection.execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": 0.2})

        with _a_gpu_with(used_mb=3174, total_mb=81920, meanwhile=wait_for_the_database):
            good = run(requests[GOOD])
        # As a launcher and run monitoring do it, past every handler of the run.
        instance.report_engine_event(MONITORING, dagster_run=good)
        run(requests[BROKEN])
        with _an_event_store_that_is_away(services):
            run(requests[GOOD])
            try:
                tick()
            except Exception as error:
                assert "does not answer" in str(error), error  # noqa: PT017
        # What Dagster recorded beside the runs' own lines.
        verdicts = [judge(instance, run.run_id) for run in instance.get_runs()]
        write_run_records(instance, services.settings, verdicts)


@contextmanager
def _forbidden(s3: Any, key: str) -> Iterator[None]:
    """S3's answer to a role that may not read an object, which no emulator gives."""
    from botocore.awsrequest import AWSResponse

    class Raw:
        def stream(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
            yield b""

    def answer(request: Any, **kwargs: Any) -> AWSResponse | None:
        if key not in request.url:
            return None
        return AWSResponse(request.url, 403, {"x-amz-request-id": "TX0000000000000F"}, Raw())

    s3.meta.events.register("before-send.s3.HeadObject", answer)
    try:
        yield
    finally:
        s3.meta.events.unregister("before-send.s3.HeadObject", answer)


@contextmanager
def _a_gpu_with(used_mb: float, total_mb: float, meanwhile: Callable[[], None]) -> Iterator[None]:
    """A stand-in for the driver's reading: the detector that runs, asked by the code that asks a GPU's.

    Args:
        meanwhile: what the run does at the first reading.
    """
    from capstone_dagster.analysis.detection import openvino_detector
    from capstone_dagster.analysis.detection.device import GpuState

    [kind] = [
        each
        for each in vars(openvino_detector).values()
        if isinstance(each, type)
        and "gpu_state" in vars(each)
        and each.__module__ == openvino_detector.__name__
    ]
    real = kind.gpu_state
    readings = itertools.count()

    def read(self: Any) -> GpuState:
        if next(readings) == 0:
            meanwhile()
        return GpuState(used_mb, total_mb, 50.0)

    kind.gpu_state = read
    try:
        yield
    finally:
        kind.gpu_state = real


@contextmanager
def _an_event_store_that_is_away(services: Any) -> Iterator[None]:
    from capstone_dagster.storage.database import Database

    there = services.database
    services.__dict__["database"] = Database("postgresql+psycopg://capstone:x@127.0.0.1:1/capstone")
    try:
        yield
    finally:
        services.__dict__["database"] = there


if __name__ == "__main__":
    main(Path(sys.argv[1]))
