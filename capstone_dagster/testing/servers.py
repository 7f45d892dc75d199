"""Fixtures: a real PostgreSQL and an AWS emulator on loopback ports, each test's part of them its own."""

import os
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy.engine import make_url

from capstone_dagster.local.aws import (
    AwsResources,
    aws_environment,
    client,
    create_resources,
    ministack_server,
)
from capstone_dagster.local.postgres import EVENT_DATABASE, PostgresServer, postgres_server
from capstone_dagster.storage.database import Database

_READ_BY_THE_PROJECT = ("CAPSTONE_", "POSTGRES_", "AWS_", "DAGSTER_")


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of the shell that runs the test."""
    for name in os.environ:
        if name.startswith(_READ_BY_THE_PROJECT) and name != "CAPSTONE_TEST_DATA":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole session, which need not survive a power failure.

    Not below pytest's own folder: run as root the server is another user, and pytest closes that folder to
    others again whenever one more session starts.
    """
    with (
        tempfile.TemporaryDirectory(prefix="capstone-test-") as folder,
        postgres_server(Path(folder) / "data", Path(folder) / "postgres.log") as server,
    ):
        with _administration(server) as connection:
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(scope="session")
def migrated_database(postgres: PostgresServer) -> Iterator[str]:
    """The name of a database with the event store's tables, to be copied."""
    with own_database(postgres) as url:
        database = Database(url)
        database.migrate()
        database.close()
        yield str(make_url(url).database)


@pytest.fixture
def database_url(postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database of the test's own: empty, unless the test uses `database` as well."""
    migrated = "database" in request.fixturenames
    template = request.getfixturevalue("migrated_database") if migrated else "template1"
    with own_database(postgres, template) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated event store of the test's own."""
    database = Database(database_url)
    yield database
    database.close()


@contextmanager
def own_database(postgres: PostgresServer, template: str = "template1") -> Iterator[str]:
    """The URL of a new copy of the database `template`, which exists during the block."""
    name = f"test_{uuid4().hex}"
    with _administration(postgres) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        yield postgres.url(name, "psycopg")
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _administration(postgres: PostgresServer) -> psycopg.Connection[Any]:
    url = make_url(postgres.url(EVENT_DATABASE, "psycopg")).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


@dataclass(frozen=True)
class Aws:
    """An emulator with the project's resources, and this process's environment pointing to it."""

    endpoint_url: str
    resources: AwsResources

    def client(self, service: str) -> Any:
        """A boto3 client of the emulator."""
        return client(service, self.endpoint_url)


@pytest.fixture(scope="session")
def aws_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty AWS emulator, ministack."""
    with ministack_server(tmp_path_factory.mktemp("aws")) as emulator:
        yield emulator.endpoint_url


@pytest.fixture
def aws_reset_path() -> str:
    """The address that resets the emulator; override it together with `aws_endpoint`."""
    return "/_ministack/reset"


@pytest.fixture
def aws(
    own_environment: None, aws_endpoint: str, aws_reset_path: str, monkeypatch: pytest.MonkeyPatch
) -> Aws:
    """The emulator with nothing but the project's resources in it: buckets, queues, topics."""
    for name, value in aws_environment(aws_endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    reset_emulator(aws_endpoint + aws_reset_path)
    return Aws(aws_endpoint, create_resources(aws_endpoint))


def reset_emulator(address: str) -> None:
    """Have an emulator forget everything."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(address, method="POST"), timeout=30).close()
