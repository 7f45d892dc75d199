"""What observing costs: CloudWatch and X-Ray against the open stack, from this project's own volumes.

    .venv/bin/python -m bench.observability_cost [--measure] [--videos 100 1000 10000] [--PRICE USD] …

Every volume and price is an option; --help lists them with their defaults. With --measure the volumes are
taken anew: the demo clip goes through intake, analysis and the reader of ended runs in a process of its own,
whose standard output is what awslogs would carry, and a collector of this script counts its spans.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.report import table

_MONTH_DAYS, _MONTH_HOURS = 30.4, 730
_EVENT_OVERHEAD = 26  # bytes that CloudWatch adds to each event (PutLogEvents)
# Ticks a minute of an idle stack (bench/idle.py), which log and publish metrics too.
_TICKS_A_MINUTE = 27
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Volumes:
    """What is written. Measured by --measure on 2026-11-30, except the numbers of series and alarms.

    Attributes:
        kb_a_video: of log lines and metric lines, with CloudWatch's own bytes for each.
        kb_a_tick: of a sensor's tick that finds nothing to do.
        series: metrics, which CloudWatch bills one by one: 53 names, and again for 4 legs, 2 services and
            twice for 6 sensors.
    """

    lines_a_video: float = 73
    metric_lines_a_video: float = 13
    kb_a_video: float = 47.0
    spans_a_video: float = 14
    kb_a_tick: float = 0.58
    series: float = 71
    alarms: float = 31
    composite_alarms: float = 18
    log_days: float = 30


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars. AWS's list prices for ap-northeast-2 of 2026-10-01, as docs/deploy.md quotes them; those
    that it marks (a), and X-Ray's, are the list prices of us-east-1.

    Attributes:
        machine_hour: of the open stack's machine, an assumption: t3.medium, with 4 GiB.
        disk_gb: of its disk, a month. compressed: the share that Loki keeps of what it receives, assumed.
        upkeep_hours, hour: work that CloudWatch does not need, a month, assumed: updates, disks, outages.
    """

    log_gb: float = 0.76
    log_gb_month: float = 0.0314
    metric: float = 0.30
    alarm: float = 0.10
    composite_alarm: float = 0.50
    dashboard: float = 3.0
    million_traces: float = 5.0
    machine_hour: float = 0.052
    disk_gb: float = 0.0912
    base_disk_gb: float = 30
    compressed: float = 0.2
    upkeep_hours: float = 2
    hour: float = 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--one-video", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--videos", type=int, nargs="+", default=[100, 1000, 10_000])
    for each in (Volumes, Prices):
        for field in fields(each):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=float, default=field.default, metavar=str(field.default))
    asked = parser.parse_args()
    if asked.one_video:
        one_video()
        return
    given = vars(asked)
    volumes = Volumes(**{field.name: given[field.name] for field in fields(Volumes)})
    prices = Prices(**{field.name: given[field.name] for field in fields(Prices)})
    if asked.measure:
        volumes = replace(volumes, **measured())
    print(json.dumps(asdict(volumes)), file=sys.stderr)
    rows = []
    for videos in asked.videos:
        cloudwatch, open_stack = costs(volumes, prices, videos)
        rows += [
            (f"{videos:,}", name, f"{usd:,.2f}")
            for name, usd in {**cloudwatch, "**CloudWatch and X-Ray**": sum(cloudwatch.values()),
                              **open_stack, "**open stack**": sum(open_stack.values())}.items()
        ]  # fmt: skip
    print(table(("videos a day", "what", "USD a month"), rows))
    for label, upkeep in (("", prices.upkeep_hours), (", where its upkeep costs nothing", 0.0)):
        many = equal(volumes, replace(prices, upkeep_hours=upkeep))
        print(f"Both cost the same at {many:,.0f} videos a day{label}.")


def equal(volumes: Volumes, prices: Prices) -> float:
    """At how many videos a day both cost the same; each grows evenly with them."""
    at = [[sum(each.values()) for each in costs(volumes, prices, videos)] for videos in (0, 1000)]
    a_video = (at[1][0] - at[0][0] - at[1][1] + at[0][1]) / 1000
    return max(0.0, (at[0][1] - at[0][0]) / a_video)


def costs(volumes: Volumes, prices: Prices, videos: int) -> tuple[dict[str, float], dict[str, float]]:
    """What a month costs, by CloudWatch and by the open stack."""
    ticks_gb = volumes.kb_a_tick * _TICKS_A_MINUTE * 60 * 24 * _MONTH_DAYS / 1e6
    gb = volumes.kb_a_video * videos * _MONTH_DAYS / 1e6 + ticks_gb
    kept_gb = gb * volumes.log_days / _MONTH_DAYS
    cloudwatch = {
        "log lines received": gb * prices.log_gb,
        "log lines kept": kept_gb * prices.log_gb_month,
        "metrics": volumes.series * prices.metric,
        "alarms": volumes.alarms * prices.alarm + volumes.composite_alarms * prices.composite_alarm,
        "dashboard": prices.dashboard,
        # X-Ray counts traces, whatever their number of spans.
        "traces": videos * _MONTH_DAYS / 1e6 * prices.million_traces,
    }
    disk_gb = prices.base_disk_gb + kept_gb * prices.compressed
    open_stack = {
        "machine": prices.machine_hour * _MONTH_HOURS,
        "its disk": disk_gb * prices.disk_gb,
        "its upkeep": prices.upkeep_hours * prices.hour,
    }
    return cloudwatch, open_stack


def measured() -> dict[str, float]:
    """The volumes of one video, and of ticks that find nothing."""
    with tempfile.TemporaryFile() as output, _collector() as (endpoint, spans):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPSTONE_")}
        environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "CAPSTONE_METRICS": "emf", "CAPSTONE_LOG_FORMAT": "json",
        }  # fmt: skip
        command = [sys.executable, "-m", "bench.observability_cost", "--one-video"]
        subprocess.run(command, stdout=output, env=environment, cwd=ROOT, check=True)
        output.seek(0)
        idle, _, video = output.read().partition(b"--- video ---\n")
    lines = [line for line in video.splitlines() if line.startswith(b"{")]
    ticks = [line for line in idle.splitlines() if line.startswith(b"{")]
    metrics = sum(b'"_aws"' in line for line in lines)
    return {
        "lines_a_video": len(lines) - metrics,
        "metric_lines_a_video": metrics,
        "kb_a_video": sum(len(line) + _EVENT_OVERHEAD for line in lines) / 1000,
        "spans_a_video": sum(spans.values()),
        "kb_a_tick": sum(len(line) + _EVENT_OVERHEAD for line in ticks) / _IDLE_TICKS / 1000,
    }


_IDLE_TICKS = 2


def one_video() -> None:
    """One video through intake, analysis and the reader of ended runs; lines go to standard output."""
    import dagster as dg
    import yaml

    from capstone_dagster.intake.sensor import upload_sensor
    from capstone_dagster.local.aws import aws_environment, create_resources, ministack_server
    from capstone_dagster.local.clip import DEMO_CLIP
    from capstone_dagster.local.postgres import DAGSTER_DATABASE, EVENT_DATABASE, postgres_server
    from capstone_dagster.logs.json_lines import configure_logging
    from capstone_dagster.reactions import ended_runs_sensor
    from capstone_dagster.services import Services
    from capstone_dagster.settings import read_settings
    from capstone_dagster.testing import Aws, Pipeline

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="capstone-bench-")))
        server = stack.enter_context(postgres_server(folder / "data", folder / "postgres.log"))
        emulator = stack.enter_context(ministack_server(folder / "aws"))
        os.environ |= aws_environment(emulator.endpoint_url)
        resources = create_resources(emulator.endpoint_url)
        os.environ |= {
            "DAGSTER_HOME": str(folder),
            "DAGSTER_POSTGRES_URL": server.url(DAGSTER_DATABASE, "psycopg2"),
            "CAPSTONE_DATABASE_URL": server.url(EVENT_DATABASE, "psycopg"),
            "CAPSTONE_DERIVED_URL": resources.derived_url,
            "CAPSTONE_RAW_BUCKET": resources.raw_bucket,
            "CAPSTONE_QUEUE_URL": resources.queue_url,
            "CAPSTONE_POLL_WAIT_S": "0",
        }
        shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
        shown = {name: shipped[name] for name in ("storage", "python_logs", "telemetry")}
        (folder / "dagster.yaml").write_text(yaml.safe_dump(shown))
        services = Services(read_settings())
        services.database.migrate()
        configure_logging(services.settings, "code-location")
        instance = stack.enter_context(dg.DagsterInstance.get())
        pipeline = Pipeline(Aws(emulator.endpoint_url, resources), services, instance)
        job = pipeline.job(services)
        repository = dg.Definitions(jobs=[job]).get_repository_def()
        cursors: dict[str, str | None] = {}

        def tick(sensor: dg.SensorDefinition) -> dg.SensorResult:
            with dg.build_sensor_context(
                instance, cursor=cursors.get(sensor.name), resources={"services": services},
                repository_def=repository,
            ) as context:  # fmt: skip
                result = sensor(context)
            assert isinstance(result, dg.SensorResult)
            cursors[sensor.name] = result.cursor
            return result

        tick(upload_sensor)  # S3's test event
        tick(ended_runs_sensor)
        sys.stdout.flush()
        os.ftruncate(1, 0)
        os.lseek(1, 0, os.SEEK_SET)
        tick(upload_sensor)
        tick(ended_runs_sensor)
        os.write(1, b"--- video ---\n")
        pipeline.aws.client("s3").put_object(
            Bucket=resources.raw_bucket, Key="gate/84.mp4", Body=DEMO_CLIP.read_bytes()
        )
        requests: list[dg.RunRequest] = []
        while not requests:
            result = tick(upload_sensor)
            requests = list(result.run_requests or [])
        for added in result.dynamic_partitions_requests or []:
            instance.add_dynamic_partitions("videos", list(added.partition_keys))
        for request in requests:
            job.execute_in_process(
                partition_key=request.partition_key, run_config=dict(request.run_config), instance=instance,
                tags=dict(request.tags) | {"dagster/run_key": str(request.run_key)},
            )  # fmt: skip
        tick(upload_sensor)
        tick(ended_runs_sensor)
        services.tracer.flush()


@contextmanager
def _collector() -> Iterator[tuple[str, Counter[str]]]:
    """A collector of traces that counts the spans it is sent, by name."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    seen: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    seen.update(span.name for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()


if __name__ == "__main__":
    main()
