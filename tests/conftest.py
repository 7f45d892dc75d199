"""Real servers for every test: PostgreSQL, and two AWS emulators that must agree."""

import os
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

# Imported here although unused: pytest's plugin for it would import it when everything is over, and
# compiling it then trips over a fault of CPython 3.11 ("AST constructor recursion depth mismatch").
import hypothesis  # noqa: F401
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
from capstone_dagster.local.clip import make_demo_clip
from capstone_dagster.local.postgres import EVENT_DATABASE, PostgresServer, postgres_server
from capstone_dagster.observability import metrics
from capstone_dagster.storage.event_store import EventStore
from tests.support.command_line import Capstone, command_line
from tests.support.moto import moto_server


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where exported models are kept, so that each is exported once in a test run."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, model_cache: Path) -> None:
    """No test sees the settings of whoever runs it."""
    for name in os.environ:
        if name.startswith(("CAPSTONE_", "POSTGRES_", "AWS_", "DAGSTER_")) and name != "CAPSTONE_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CAPSTONE_MODEL_CACHE", str(model_cache))


@pytest.fixture(autouse=True)
def _refuse_undeclared_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that the list does not have fails the test that emits it."""
    monkeypatch.setattr(metrics, "strict", True)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real footage and teacher models, laid out as data/ and models/; not part of the repository."""
    folder = os.environ.get("CAPSTONE_TEST_DATA")
    if not folder:
        pytest.skip("needs real footage: set CAPSTONE_TEST_DATA to a folder that holds data/ and models/")
    return Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole session.

    Not below pytest's own folder: run as root the server is another user, and pytest closes that folder to
    others again whenever one more session starts.
    """
    with (
        tempfile.TemporaryDirectory(prefix="capstone-test-") as folder,
        postgres_server(Path(folder) / "data", Path(folder) / "postgres.log") as server,
    ):
        yield server


@pytest.fixture
def database_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    url = make_url(postgres.url(EVENT_DATABASE, "psycopg"))
    name = f"test_{uuid4().hex}"
    admin = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield url.set(database=name).render_as_string(hide_password=False)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def event_store(database_url: str) -> Iterator[EventStore]:
    """A migrated event store of the test's own."""
    store = EventStore(database_url)
    store.migrate()
    yield store
    store.close()


@pytest.fixture(scope="module", params=["ministack", "moto"])
def aws_endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty emulator; every test that uses it runs against each."""
    if request.param == "moto":
        with moto_server() as endpoint_url:
            yield endpoint_url
    else:
        with ministack_server(tmp_path_factory.mktemp("aws")) as emulator:
            yield emulator.endpoint_url


@dataclass(frozen=True)
class Aws:
    """An emulator with the project's resources, and this process's environment pointing to it."""

    endpoint_url: str
    resources: AwsResources

    def client(self, service: str) -> Any:
        return client(service, self.endpoint_url)


# How each emulator is told to forget everything.
_RESET = {"ministack": "/_ministack/reset", "moto": "/moto-api/reset"}


@pytest.fixture
def aws(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Aws:
    """The emulator with nothing but the project's resources in it."""
    for name, value in aws_environment(aws_endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    path = _RESET[request.node.callspec.params["aws_endpoint"]]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(aws_endpoint + path, method="POST"), timeout=30).close()
    return Aws(aws_endpoint, create_resources(aws_endpoint))


@pytest.fixture
def capstone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Capstone:
    """Runs a command line, away from any stack of the person who runs the tests."""
    return command_line(monkeypatch, capsys, tmp_path / "no-stack")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo clip: real people, H.264."""
    return make_demo_clip(tmp_path_factory.mktemp("clip") / "clip.mp4").path
