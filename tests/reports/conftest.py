"""An event store and Dagster's storage in one PostgreSQL, and a pipeline over both."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml

from capstone_dagster.services import Services
from capstone_dagster.testing import Aws, Pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pipeline(
    aws: Aws, services: Services, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipeline]:
    """Runs are on record where the deployed system has them, and the environment names both databases."""
    storage = yaml.safe_load((ROOT / "dagster.yaml").read_text())["storage"]
    (tmp_path / "dagster.yaml").write_text(
        yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}})
    )
    url = sa.make_url(database_url)
    for name, value in {
        "DAGSTER_HOME": str(tmp_path),
        "DAGSTER_POSTGRES_URL": url.set(drivername="postgresql+psycopg2").render_as_string(
            hide_password=False
        ),
        "CAPSTONE_DATABASE_URL": url.render_as_string(hide_password=False),
    }.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        yield Pipeline(aws, services, instance)
