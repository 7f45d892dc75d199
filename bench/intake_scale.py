"""What a tick of 500 messages costs with 100,000 past runs and 50,000 partitions, against an empty instance.

Real SQS and S3 (the local emulator), real PostgreSQL for Dagster's storage and the event store. Both
instances are ticked alternately; the medians' ratio is what the goal of 1.5 speaks of. Also timed are the two
ways of asking Dagster which of 500 run keys exist: one query with all, and one query for each.

    .venv/bin/python bench/intake_scale.py [--runs 100000] [--partitions 50000] [--messages 500] [--pairs 5]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import yaml
from dagster._core.storage.tags import RUN_KEY_TAG
from sqlalchemy.engine import make_url

from capstone_dagster.intake.runs import PARTITIONS_NAME
from capstone_dagster.intake.sensor import upload_sensor
from capstone_dagster.local.aws import aws_environment, client, create_resources, ministack_server
from capstone_dagster.local.postgres import EVENT_DATABASE, PostgresServer, postgres_server
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database


@dg.job
def recorded() -> None:
    """Stands for the job: here runs are only recorded."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=50_000)
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="capstone-bench-")))
        server = running.enter_context(postgres_server(folder / "postgres", folder / "postgres.log"))
        emulator = running.enter_context(ministack_server(folder / "aws"))
        os.environ.update(aws_environment(emulator.endpoint_url))
        resources = create_resources(emulator.endpoint_url)
        sides = {name: running.enter_context(side(server, folder, name)) for name in ("empty", "full")}
        fill(server, "full", options.runs, options.partitions)
        times: dict[str, list[float]] = {name: [] for name in sides}
        asked: dict[str, list[float]] = {}
        for pair in range(options.pairs + 1):  # the first pair warms up
            for name, (instance, services) in sides.items():
                seconds, keys = tick(instance, services, emulator.endpoint_url, resources, options.messages)
                if pair:
                    times[name].append(seconds)
                    for way, spent in ask_both_ways(instance, keys).items():
                        asked.setdefault(f"{name}: {way}", []).append(spent)
        report(options, times, asked)


@contextmanager
def side(server: PostgresServer, folder: Path, name: str) -> Iterator[tuple[dg.DagsterInstance, Services]]:
    """One Dagster instance and one event store, each in a database of its own."""
    url = make_url(server.url(EVENT_DATABASE, "psycopg"))
    with psycopg.connect(_plain(url), autocommit=True) as connection:
        for kind in ("dagster", "events"):
            connection.execute(f"CREATE DATABASE {kind}_{name}")
    home = folder / name
    home.mkdir()
    storage = url.set(drivername="postgresql+psycopg2", database=f"dagster_{name}")
    config = {"storage": {"postgres": {"postgres_url": storage.render_as_string(hide_password=False)}}}
    (home / "dagster.yaml").write_text(yaml.safe_dump({**config, "telemetry": {"enabled": False}}))
    events = url.set(database=f"events_{name}").render_as_string(hide_password=False)
    database = Database(events)
    database.migrate()
    database.close()
    settings = read_settings(
        database_url=events,
        queue_url=create_resources(os.environ["AWS_ENDPOINT_URL"]).queue_url,
        poll_wait_s=0.0,
        max_queued_runs=10**9,
        messages_per_tick=5000,  # whatever --messages asks for is one tick
    )
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance, Services(settings)


def fill(server: PostgresServer, name: str, runs: int, partitions: int) -> None:
    """Past runs with their tags and past partitions, as rows: running them would take days."""
    url = make_url(server.url(EVENT_DATABASE, "psycopg")).set(database=f"dagster_{name}")
    template = recorded_run()
    with psycopg.connect(_plain(url)) as connection, connection.cursor() as cursor:
        ids = [str(uuid.uuid4()) for _ in range(runs)]
        with cursor.copy(
            "COPY runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, partition, partition_set,"
            " create_timestamp, update_timestamp) FROM STDIN"
        ) as copy:
            now = datetime.now(UTC)
            for index, run_id in enumerate(ids):
                body = template.replace("RUN_ID", run_id)
                partition = f"video-{index % max(partitions, 1)}"
                copy.write_row(
                    [run_id, None, "analyze_upload", None, "SUCCESS", body, partition, None, now, now]
                )
        with cursor.copy("COPY run_tags (run_id, key, value) FROM STDIN") as copy:
            for index, run_id in enumerate(ids):
                tags = {
                    RUN_KEY_TAG: uuid.uuid4().hex,
                    "dagster/sensor_name": "upload_sensor",
                    "dagster/partition": f"video-{index % max(partitions, 1)}",
                    ".dagster/capstone.upload_id": uuid.uuid4().hex,
                }
                for key, value in tags.items():
                    copy.write_row([run_id, key, value])
        with cursor.copy("COPY dynamic_partitions (partitions_def_name, partition) FROM STDIN") as copy:
            for index in range(partitions):
                copy.write_row([PARTITIONS_NAME, f"video-{index}"])
        connection.commit()
        connection.autocommit = True
        cursor.execute("ANALYZE")


def recorded_run() -> str:
    """The stored form of a run, its id to be filled in."""
    from dagster._serdes import serialize_value

    run = dg.DagsterRun(job_name="analyze_upload", run_id="RUN_ID", status=dg.DagsterRunStatus.SUCCESS)
    return serialize_value(run)


def tick(
    instance: dg.DagsterInstance, services: Services, endpoint_url: str, resources: Any, messages: int
) -> tuple[float, list[str]]:
    """Seconds of one tick over new uploads, up to and with Dagster's own look-up and new partitions."""
    s3, sqs = client("s3", endpoint_url), client("sqs", endpoint_url)
    s3.put_bucket_notification_configuration(Bucket=resources.raw_bucket, NotificationConfiguration={})
    sqs.purge_queue(QueueUrl=resources.queue_url)
    batch = uuid.uuid4().hex[:8]
    keys = [f"cam/{batch}-{index}.mp4" for index in range(messages)]
    for key in keys:
        s3.put_object(Bucket=resources.raw_bucket, Key=key, Body=key.encode())
    for start in range(0, messages, 10):
        sqs.send_message_batch(
            QueueUrl=resources.queue_url,
            Entries=[
                {"Id": str(i), "MessageBody": json.dumps({"bucket": resources.raw_bucket, "key": key})}
                for i, key in enumerate(keys[start : start + 10])
            ],
        )
    began = time.perf_counter()
    context = dg.build_sensor_context(instance=instance, resources={"services": services})
    result = upload_sensor(context)
    assert isinstance(result, dg.SensorResult)
    assert len(result.run_requests or []) == messages, result
    run_keys = [str(request.run_key) for request in result.run_requests or []]
    for request in result.dynamic_partitions_requests or []:
        for key in request.partition_keys or []:
            instance.has_dynamic_partition(PARTITIONS_NAME, key)
        instance.add_dynamic_partitions(PARTITIONS_NAME, list(request.partition_keys or []))
    return time.perf_counter() - began, run_keys


def ask_both_ways(instance: dg.DagsterInstance, keys: list[str]) -> dict[str, float]:
    """Seconds to learn which of the run keys have a run."""
    ways: dict[str, Callable[[], Any]] = {
        "one query with all run keys": lambda: instance.get_run_records(
            dg.RunsFilter(tags={RUN_KEY_TAG: keys})
        ),
        "one query for each run key": lambda: [
            instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: key})) for key in keys
        ],
    }
    spent = {}
    for name, way in ways.items():
        began = time.perf_counter()
        way()
        spent[name] = time.perf_counter() - began
    return spent


def report(options: argparse.Namespace, times: dict[str, list[float]], asked: dict[str, list[float]]) -> None:
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"dagster {version('dagster')}, {datetime.now(UTC):%Y-%m-%d}")
    print(
        f"{options.runs:,} past runs, {options.partitions:,} partitions, {options.messages} messages a tick"
    )
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    for name, median in medians.items():
        print(f"tick on the {name} instance: median {median:.2f} s of {[round(t, 2) for t in times[name]]}")
    for name, spent in asked.items():
        print(f"{name}: median {statistics.median(spent) * 1000:.0f} ms")
    print(f"ratio full to empty: {medians['full'] / medians['empty']:.2f}")


def _plain(url: Any) -> str:
    return str(url.set(drivername="postgresql").render_as_string(hide_password=False))


if __name__ == "__main__":
    main()
