"""Real servers for the tests of the local stack: both AWS emulators, and a throw-away Dagster project."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capstone_dagster.local.aws import ministack_server
from capstone_dagster.local.stack import DagsterFiles
from tests.support.moto import moto_server

INSTANCE = """
storage:
  postgres:
    postgres_url: {env: DAGSTER_POSTGRES_URL}
run_launcher: {module: dagster, class: DefaultRunLauncher}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
telemetry: {enabled: false}
"""
WORKSPACE = """
load_from:
  - python_module: {module_name: throw_away, location_name: throw-away}
"""
DEFINITIONS = """
import os
import threading
from pathlib import Path

import dagster as dg


@dg.op
def say_pid_and_wait():
    written = Path(os.environ["RUN_PID_FILE"] + ".unfinished")
    written.write_text(str(os.getpid()))
    written.rename(os.environ["RUN_PID_FILE"])
    threading.Event().wait()


@dg.job(executor_def=dg.in_process_executor)
def endless():
    say_pid_and_wait()


defs = dg.Definitions(jobs=[endless])
"""


@pytest.fixture(scope="module", params=["ministack", "moto"])
def aws_endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty emulator; every test that uses it runs against each."""
    if request.param == "moto":
        with moto_server() as endpoint_url:
            yield endpoint_url
    else:
        with ministack_server(tmp_path_factory.mktemp("aws")) as emulator:
            yield emulator.endpoint_url


@pytest.fixture
def dagster_project(tmp_path: Path) -> Callable[[str], DagsterFiles]:
    """Write a Dagster project with the given definitions and return its two files."""

    def write(definitions: str = DEFINITIONS) -> DagsterFiles:
        project = tmp_path / "project"
        project.mkdir()
        files = DagsterFiles(project / "workspace.yaml", project / "dagster.yaml")
        files.workspace.write_text(WORKSPACE)
        files.instance.write_text(INSTANCE)
        (project / "throw_away.py").write_text(definitions)
        return files

    return write
