"""A throw-away Dagster project for the tests of the local stack."""

from collections.abc import Callable
from pathlib import Path

import pytest

from capstone_dagster.local.stack import DagsterFiles

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
