"""Videos that were really analysed, with Dagster's storage in PostgreSQL and its logs in S3."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml

from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from tests.assets.conftest import Pipeline
from tests.conftest import Aws


@pytest.fixture
def dagster_home(aws: Aws, dagster_storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME of the test's own, with what of dagster.yaml keeps something."""
    home = tmp_path / "dagster"
    home.mkdir()
    config = {
        "storage": {"postgres": {"postgres_url": dagster_storage_url}},
        "compute_logs": {
            "module": "capstone_dagster.logs.compute_logs",
            "class": "TickLogsInS3",
            "config": {"bucket": "capstone-derived", "prefix": "compute-logs"},
        },
        "telemetry": {"enabled": False},
    }
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


@pytest.fixture
def pipeline(
    aws: Aws, database: Database, dagster_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipeline]:
    url = database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    monkeypatch.setenv("CAPSTONE_DERIVED_URL", aws.resources.derived_url)
    services = Services(read_settings(sample_fps=1.0))
    with dg.DagsterInstance.get() as instance:
        yield Pipeline(aws, services, instance)
    services.database.close()


@pytest.fixture
def everything(pipeline: Pipeline, dagster_home: Path) -> Any:
    """Looks for texts in all rows of both databases, and in all names and bodies of objects."""

    def find(*texts: str) -> list[str]:
        config = yaml.safe_load((dagster_home / "dagster.yaml").read_text())
        dagster = sa.create_engine(config["storage"]["postgres"]["postgres_url"])
        found = []
        for engine in (pipeline.services.database.engine, dagster):
            with engine.connect() as connection:
                tables = connection.execute(
                    sa.text(
                        "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables "
                        "WHERE table_type = 'BASE TABLE' AND table_schema NOT IN "
                        "('pg_catalog', 'information_schema')"
                    )
                ).scalars()
                for table in tables.all():
                    for row in connection.execute(sa.text(f"SELECT t::text FROM {table} AS t")).scalars():
                        found += [f"{table}: {text}" for text in texts if text in row]
        dagster.dispose()
        s3 = pipeline.aws.client("s3")
        for bucket in ("capstone-raw", "capstone-derived"):
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
                for item in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                    body = b""
                    if "Size" in item:
                        version = item.get("VersionId") or "null"
                        named = {} if version == "null" else {"VersionId": version}
                        body = s3.get_object(Bucket=bucket, Key=item["Key"], **named)["Body"].read()
                    found += [
                        f"{bucket}/{item['Key']}: {text}"
                        for text in texts
                        if text in item["Key"] or text.encode() in body
                    ]
        return found

    return find
