"""A folder for Dagster's records in SQLite whose tables are there already."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import dagster as dg


def dagster_home(folder: Path, config: str = "") -> str:
    """Fill a test's folder; its path, as DAGSTER_HOME and `DagsterInstance.local_temp` take it.

    Making the tables takes Dagster 0.3 processor seconds longer than copying them.

    Args:
        config: dagster.yaml, beside that telemetry is off.
    """
    shutil.copytree(_empty().name, folder, dirs_exist_ok=True)
    (folder / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\n{config}")
    return str(folder)


@cache
def _empty() -> "tempfile.TemporaryDirectory[str]":
    """Made once a process, which removes it at its end."""
    home = tempfile.TemporaryDirectory(prefix="dagster-home-")
    with dg.DagsterInstance.local_temp(home.name) as instance:
        instance.get_runs_count()
        instance.get_dynamic_partitions("videos")
        instance.all_instigator_state()
    return home
