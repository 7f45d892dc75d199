"""Real servers for every test: PostgreSQL, and two AWS emulators that must agree."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

# Imported here although unused: pytest's plugin for it would import it when everything is over, and
# compiling it then trips over a fault of CPython 3.11 ("AST constructor recursion depth mismatch").
import dagster as dg
import hypothesis  # noqa: F401
import pytest
import yaml
from sqlalchemy.engine import make_url

from capstone_dagster.local.aws import ministack_server
from capstone_dagster.local.postgres import PostgresServer
from capstone_dagster.metrics import emission as metrics
from capstone_dagster.testing import Aws
from capstone_dagster.testing.servers import own_database, reset_emulator
from tests.support.command_line import Capstone, command_line
from tests.support.live_stack import LiveStack, SharedStack
from tests.support.moto import moto_server
from tests.support.waiting import SLOWNESS_VARIABLE, scaled, slowness

__all__ = ["Aws"]  # tests name the type from here

# The servers, the demo clip and the rest of what tests of other projects use as well.
pytest_plugins = ["capstone_dagster.testing"]

# Tests that start Dagster's processes carry the mark `live`. A live stack is eight processes: they form one
# group, which one worker takes, so that there is never more than one stack at a time.
LIVE_GROUP = "live"
# Files whose tests take longest, longest first. A worker takes a file at a time: a long one that comes last
# leaves the other worker with nothing to do.
LONG = (
    # One after the other: the last two share a stack.
    "tests/local/test_operators.py",
    "tests/runs/test_reexecution_daemon.py",
    "tests/local/test_backfill_stack.py",
    "tests/intake/test_soak.py",
    "tests/removal/test_erasure.py",
    "tests/test_shown_commands.py",
)


# Most tests test what is ours, above AWS: they run on one emulator. These show that the other one agrees.
MOTO_TOO = (
    "tests/assets/test_pipeline.py::test_an_upload_becomes_events_exactly_once",
    "tests/commands/test_doctor_channels.py",
    "tests/infra/test_created.py",
    "tests/intake/test_sensor.py",
    "tests/local/test_aws.py",
    "tests/logs/test_compute_logs.py",
    "tests/outbox/test_outbox.py",
    "tests/removal/test_erasure.py::test_nothing_is_left_of_a_deleted_video",
    "tests/storage/test_objects.py",
)


def pytest_configure() -> None:
    """Measure the machine before xdist starts its workers, which inherit the figure."""
    slowness()
    # A shell has what it starts in the background ignore SIGINT, and Dagster then has it ignore SIGTERM, too:
    # so would the processes that tests start and stop.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"slowness: {slowness():.1f} ({SLOWNESS_VARIABLE}); every deadline is multiplied by it"


@pytest.hookimpl(tryfirst=True)  # xdist's own hook reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Live tests and long files first; a group per file; moto only where it is to agree."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (not _live(item), place.get(_file(item), len(LONG))))
    spared = [item for item in items if _emulator(item) == "moto" and not item.nodeid.startswith(MOTO_TOO)]
    config.hook.pytest_deselected(items=spared)
    items[:] = [item for item in items if item not in spared]
    for item in items:
        item.add_marker(pytest.mark.xdist_group(LIVE_GROUP if _live(item) else _file(item)))
        own = item.get_closest_marker("timeout")
        timeout_s = own.args[0] if own else float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(scaled(timeout_s)), append=False)


def _live(item: pytest.Item) -> bool:
    return item.get_closest_marker("live") is not None


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _emulator(item: pytest.Item) -> object:
    return item.callspec.params.get("aws_endpoint") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where exported models are kept, so that each is exported once in a test run."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def _own_environment(own_environment: None, monkeypatch: pytest.MonkeyPatch, model_cache: Path) -> None:
    """No test sees the settings of whoever runs it."""
    monkeypatch.setenv("CAPSTONE_MODEL_CACHE", str(model_cache))


@pytest.fixture(autouse=True)
def _refuse_undeclared_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that the list does not have fails the test that emits it."""
    monkeypatch.setattr(metrics, "strict", True)


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Iterator[SharedStack]:
    """The holder of the live stack; tests use `stack`."""
    shared = SharedStack(tmp_path_factory.mktemp("live"), model_cache)
    yield shared
    shared.stop()


@pytest.fixture
def stack(
    shared_stack: SharedStack, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> LiveStack:
    """The live stack that tests share, with the module's STACK for settings; this process is a client."""
    stack = shared_stack.running(request.module.STACK)
    for name, value in stack.local.environment.items():
        monkeypatch.setenv(name, value)
    return stack


@pytest.fixture(autouse=True)
def _one_live_stack(request: pytest.FixtureRequest) -> None:
    """A live test that starts a stack of its own finds the shared one stopped."""
    if _live(request.node) and "shared_stack" not in request.fixturenames:
        request.getfixturevalue("shared_stack").stop()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real footage and teacher models, laid out as data/ and models/; not part of the repository."""
    folder = os.environ.get("CAPSTONE_TEST_DATA")
    if not folder:
        pytest.skip("needs real footage: set CAPSTONE_TEST_DATA to a folder that holds data/ and models/")
    return Path(folder)


@pytest.fixture(scope="session")
def dagster_storage(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database with Dagster's tables, to be copied: making them takes longer than a test."""
    home = tmp_path_factory.mktemp("template")
    with own_database(postgres) as url:
        storage = {"postgres": {"postgres_url": _of_dagster(url)}}
        (home / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
        with dg.DagsterInstance.from_config(str(home)):
            pass
        yield str(make_url(url).database)


@pytest.fixture
def dagster_storage_url(postgres: PostgresServer, dagster_storage: str) -> Iterator[str]:
    """The URL of a database with Dagster's tables, of the test's own."""
    with own_database(postgres, dagster_storage) as url:
        yield _of_dagster(url)


def _of_dagster(url: str) -> str:
    return make_url(url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Starts an emulator when a test first asks for it by its name; returns its URL."""
    with ExitStack() as running:

        @cache
        def started(name: str) -> str:
            if name == "moto":
                return running.enter_context(moto_server())
            return running.enter_context(ministack_server(tmp_path_factory.mktemp("aws"))).endpoint_url

        yield started


@pytest.fixture(scope="module", params=["ministack", "moto"])
def aws_endpoint(request: pytest.FixtureRequest, emulators: Callable[[str], str]) -> str:
    """The URL of an empty emulator; what `MOTO_TOO` names runs against each."""
    endpoint_url = emulators(request.param)
    reset_emulator(endpoint_url + _RESET_PATHS[request.param])
    return endpoint_url


# The path that resets each emulator.
_RESET_PATHS = {"ministack": "/_ministack/reset", "moto": "/moto-api/reset"}


@pytest.fixture
def aws_reset_path(request: pytest.FixtureRequest) -> str:
    return _RESET_PATHS[request.node.callspec.params["aws_endpoint"]]


@pytest.fixture
def capstone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Capstone:
    """Runs a command line, away from any stack of the person who runs the tests."""
    return command_line(monkeypatch, capsys, tmp_path / "no-stack")
