"""Measures the reports beside 100,000 runs: rows read, statements, and processor time.

    .venv/bin/python -m bench.reports --runs 100000

Starts a PostgreSQL of its own and fills it as `bench/scrape.py` does, with an analysis, a pass and the events
of a run's course for each; 2 % have failed, for one of five reasons. Prints one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.scrape import DAGSTER, EVENTS, _fill
from capstone_dagster.dagster_storage import PooledPostgresStorage
from capstone_dagster.local.postgres import DAGSTER_DATABASE, EVENT_DATABASE, postgres_server
from capstone_dagster.reports.causes import causes_report
from capstone_dagster.reports.delivery import delivery_report
from capstone_dagster.reports.gathering import history, service_facts
from capstone_dagster.reports.performance import performance_report
from capstone_dagster.reports.reading import Records, open_records
from capstone_dagster.reports.records import Period
from capstone_dagster.reports.service import service_report
from capstone_dagster.reports.shown import Report, as_text
from capstone_dagster.storage.database import Database

# A run a minute, each with its events; what `bench/scrape.py` leaves out.
_DAGSTER = """
    UPDATE runs SET start_time = extract(epoch FROM now()) - id * 20,
        end_time = extract(epoch FROM now()) - id * 20 + 15 WHERE status <> 'QUEUED';
    INSERT INTO event_logs (run_id, dagster_event_type, step_key, timestamp, event)
    SELECT run_id, 'STEP_FAILURE', 'video_analysis.analyze_video', now(), json_build_object('dagster_event',
        json_build_object('event_specific_data', json_build_object('error', json_build_object('message',
        'Error ' || id || ' of the kind ' ||
        (ARRAY['first', 'second', 'third', 'fourth', 'fifth'])[1 + id % 5] || ' on /dev/' || id))))::text
    FROM runs WHERE status = 'FAILURE';
    INSERT INTO event_logs (run_id, dagster_event_type, step_key, timestamp, event)
    SELECT run_id, 'STEP_START', 'video_analysis.analyze_video', now() - interval '10 s', '{}'
    FROM runs WHERE status = 'FAILURE';
    INSERT INTO kvs (key, value) SELECT 'capstone/deployments', json_agg(json_build_object(
        'version', 'v' || n, 'seen', extract(epoch FROM now()) - n * 86400, 'committed',
        extract(epoch FROM now()) - n * 86400 - 7200) ORDER BY n DESC)::text
    FROM generate_series(1, 20) AS n;
"""
_EVENTS = """
    INSERT INTO capstone.analyses SELECT
        'a' || n, 'd' || n, 'v' || n, 'u' || n, 'm', 'x', '{}', 1, 1, 'r' || n, 1, 1, 1, 1, 10, 'cpu', 'b',
        5, 6,
        'p', now() - n * interval '20 s', now(),
        now() - n * interval '20 s' + interval '17 s', true
    FROM generate_series(51, :runs) AS n WHERE n % 50 <> 0;
    UPDATE capstone.video_status SET failure_class = 'gpu-error' WHERE state = 'failed';
    UPDATE capstone.videos SET duration_ms = 60000;
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100_000)
    runs = parser.parse_args().runs
    with (
        tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder,
        postgres_server(Path(folder) / "data", Path(folder) / "postgres.log") as server,
    ):
        os.environ["DAGSTER_POSTGRES_URL"] = server.url(DAGSTER_DATABASE, "psycopg2")
        storage = PooledPostgresStorage(os.environ["DAGSTER_POSTGRES_URL"])
        database = Database(server.url(EVENT_DATABASE, "psycopg"))
        database.migrate()
        _fill(storage.run_storage._engine, DAGSTER + _DAGSTER, runs)  # type: ignore[attr-defined]
        _fill(database.engine, EVENTS + _EVENTS, runs)
        until = time.time()
        period = Period(until - 30 * 86_400, until)
        made: dict[str, Callable[[Records], Report]] = {
            "slo": lambda records: service_report(service_facts(records, period, 1.0)),
            "perf-report": lambda records: performance_report(
                records.journeys(period, most=2000), records.statements(most=8), period, most=2000
            ),
            "incidents": lambda records: causes_report(
                records.failures(period, most=5000), period, runbook="docs/runbook.md", most=5000
            ),
            "dora": lambda records: delivery_report(history(records, until), period),
        }
        print(json.dumps({name: _measure(database, make) for name, make in made.items()}, indent=1))
        database.close()


def _measure(database: Database, make: Callable[[Records], Report]) -> dict[str, object]:
    began, worked = time.perf_counter(), time.process_time()
    with open_records(database) as records:
        report = make(records)
    text = as_text(report)
    return {
        "rows": records.rows,
        "statements": records.queries,
        "processor_s": round(time.process_time() - worked, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "says": text.splitlines()[2:4],
    }


if __name__ == "__main__":
    main()
