"""Measures a scrape of `/metrics` beside 100,000 runs: time of each source, of the answer, and its series.

    .venv/bin/python -m bench.scrape --runs 100000

Starts a PostgreSQL of its own and fills Dagster's tables and the event store by SQL: of the runs 2 % have
failed and 50 wait. Prints one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import sqlalchemy as sa

from capstone_dagster.catalog.metrics import METRICS
from capstone_dagster.dagster_storage import PooledPostgresStorage
from capstone_dagster.local.postgres import DAGSTER_DATABASE, EVENT_DATABASE, postgres_server
from capstone_dagster.metrics.exposition import Exposition
from capstone_dagster.metrics.received import ReceivedMetrics
from capstone_dagster.metrics.stored import DAGSTER_STORAGE, EVENT_STORE, StoredFigures, of_dagster, of_events
from capstone_dagster.storage.database import Database

DAGSTER = """
    INSERT INTO runs (run_id, status, create_timestamp, update_timestamp)
    SELECT 'r' || n, CASE WHEN n <= 50 THEN 'QUEUED' WHEN n % 50 = 0 THEN 'FAILURE' ELSE 'SUCCESS' END,
        now() - n * interval '1 minute', now() - n * interval '1 minute'
    FROM generate_series(1, :runs) AS n;
    INSERT INTO run_tags (run_id, key, value) SELECT 'r' || n, '.dagster/capstone.video_id', 'v' || n
    FROM generate_series(1, :runs) AS n;
    INSERT INTO run_tags (run_id, key, value) SELECT 'r' || n, 'capstone/failure', 'gpu-error'
    FROM generate_series(50, :runs, 50) AS n;
    INSERT INTO instigators (selector_id) SELECT 's' || n FROM generate_series(1, 5) AS n;
    INSERT INTO job_ticks (selector_id, status, timestamp)
    SELECT 's' || n % 5, 'SKIPPED', now() - n * interval '2 seconds' FROM generate_series(1, :runs) AS n;
    INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp) VALUES ('SENSOR', 'd', now());
"""
EVENTS = """
    INSERT INTO capstone.videos (video_id, bucket, key, camera, etag, size_bytes, uploaded_at)
    SELECT 'v' || n, 'raw', n || '.mp4', 'c', 'e', 1, now() FROM generate_series(1, :runs) AS n;
    INSERT INTO capstone.video_status (upload_id, video_id, state, etag, size_bytes, uploaded_at)
    SELECT 'u' || n, 'v' || n,
        CASE WHEN n <= 50 THEN 'queued' WHEN n % 50 = 0 THEN 'failed' ELSE 'done' END, 'e', 1, now()
    FROM generate_series(1, :runs) AS n;
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        place = Path(folder)
        with postgres_server(place / "data", place / "postgres.log") as server:
            storage = PooledPostgresStorage(server.url(DAGSTER_DATABASE, "psycopg2"))
            database = Database(server.url(EVENT_DATABASE, "psycopg"))
            database.migrate()
            _fill(storage.run_storage._engine, DAGSTER, runs)  # type: ignore[attr-defined]
            _fill(database.engine, EVENTS, runs)
            instance: Any = SimpleNamespace(
                run_storage=storage.run_storage,
                schedule_storage=storage.schedule_storage,
                get_required_daemon_types=lambda: ["SENSOR"],
            )
            print(json.dumps({"runs": runs, **_measure(instance, database)}, indent=1))
            database.close()


def _fill(engine: sa.Engine, script: str, runs: int) -> None:
    with engine.connect() as connection:
        connection.execute(sa.text("SET statement_timeout = 0"))
        for statement in filter(str.strip, script.split(";\n")):
            connection.execute(sa.text(statement), {"runs": runs} if ":runs" in statement else {})
        connection.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))


def _measure(instance: dg.DagsterInstance, database: Database) -> dict[str, Any]:
    looks = {DAGSTER_STORAGE: lambda: of_dagster(instance), EVENT_STORE: lambda: of_events(database)}
    of_sources = {f"{source}_ms": _median(lambda look=look: list(look())) for source, look in looks.items()}
    clock = [0.0]
    exposition = Exposition(ReceivedMetrics(), StoredFigures(looks, lambda: clock[0]))

    def with_new_figures() -> bytes:
        clock[0] += 60
        return bytes(exposition.metrics().body)

    text = with_new_figures().decode()
    series = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {
        **of_sources,
        "scrape_with_new_figures_ms": _median(with_new_figures),
        "scrape_ms": _median(lambda: exposition.metrics()),
        "series": len(series),
        "series_of_declared_metrics": sum("capstone_" in line for line in series),
        "declared_metrics": len(METRICS),
        "bytes": len(text),
    }


def _median(action: Callable[[], object]) -> float:
    took = []
    for _ in range(15):
        began = time.perf_counter()
        action()
        took.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(took), 1)


if __name__ == "__main__":
    main()
