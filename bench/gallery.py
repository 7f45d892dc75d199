"""Measures the gallery of `capstone browse` beside a million events: time of a request, plan, bytes, memory.

    .venv/bin/python -m bench.gallery --events 1000000

Starts a PostgreSQL of its own, fills the event store by SQL, serves the pages in this process, and asks for
each kind of page several times. Prints one JSON object.
"""

import argparse
import json
import resource
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import sqlalchemy as sa
import uvicorn

from capstone_dagster.local.postgres import EVENT_DATABASE, postgres_server
from capstone_dagster.local.processes import free_port
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.objects import FileObjects
from capstone_dagster.web import reading
from capstone_dagster.web.application import create_app
from capstone_dagster.web.reading import Place
from capstone_dagster.web.site import Site

# A thousand events a video, 20 cameras, a hundred days.
FILL = """
    INSERT INTO capstone.videos (video_id, bucket, key, camera, etag, size_bytes, uploaded_at, recorded_at)
    SELECT 'v' || n, 'raw', 'c' || n % 20 || '/' || n || '.mp4', 'camera ' || n % 20, 'e', 1, now(), now()
    FROM generate_series(1, :videos) AS n;
    INSERT INTO capstone.video_status (upload_id, video_id, state, etag, size_bytes, uploaded_at)
    SELECT 'u' || n, 'v' || n, 'done', 'e', 1, now() FROM generate_series(1, :videos) AS n;
    INSERT INTO capstone.analyses SELECT
        'a' || n, 'd' || n, 'v' || n, 'u' || n, 'm', 'x', '{}', 1, 1, 'r', 1, 1, 1, 1, 1000, 'cpu', 'b', 0, 1,
        'p', now(), now(), now(), true
    FROM generate_series(1, :videos) AS n;
    INSERT INTO capstone.events SELECT
        'e' || n, 'a' || n % :videos + 1, 'v' || n % :videos + 1, 'camera ' || (n % :videos + 1) % 20, n,
        CASE WHEN n % 10 = 0 THEN 'face' ELSE 'person' END, n, n + 1000, at, at + interval '1 second', 1, 2,
        200, 5, random(), 0.5, n, '{0,0,1,1}', CASE WHEN n % 5 = 0 THEN 0.8 END, NULL, false, false, 'k'
    FROM (
        SELECT n, timestamptz '2026-01-01' + n * interval '8.64 seconds' AS at
        FROM generate_series(1, :events) AS n
    ) AS rows;
    ANALYZE;
"""
PAGES = {
    "newest": "/",
    "one camera": "/?camera=camera+7",
    "a day, with faces": "/?from=2026-02-10T00:00&to=2026-02-11T00:00&faces=1",
    "score above 0.99": "/?score=0.99",
    "nothing matches": "/?score=1",
    "nothing of a camera matches": "/?camera=camera+7&score=1",
    "faces of a camera above 0.95": "/?camera=camera+7&label=face&score=0.95",
    "in the middle": "/?after="
    + quote(str(Place("e1", reading.datetime.fromisoformat("2026-02-20T00:00:00+00:00")))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        place = Path(folder)
        with postgres_server(place / "data", place / "postgres.log") as server:
            database = Database(server.url(EVENT_DATABASE, "psycopg"))
            database.migrate()
            with database.engine.begin() as connection:
                connection.execute(sa.text("SET statement_timeout = 0"))
                sizes = {"events": arguments.events, "videos": max(1, arguments.events // 1000)}
                for statement in FILL.split(";\n"):
                    if statement.strip():
                        names = {name: value for name, value in sizes.items() if f":{name}" in statement}
                        connection.execute(sa.text(statement), names)
            reading_only = Database(server.url(EVENT_DATABASE, "psycopg"), reader=True)
            site = Site(read_settings(timezone="UTC"), reading_only, FileObjects(place), SimpleNamespace())  # type: ignore[arg-type]
            print(
                json.dumps({"events": arguments.events, "plan": _plan(database), **_measure(site)}, indent=1)
            )
            reading_only.close()
            database.close()


def _plan(database: Database) -> list[str]:
    """The nodes of the newest page's plan."""
    query = (
        "EXPLAIN SELECT * FROM capstone.current_events WHERE started_at IS NOT NULL "
        f"ORDER BY started_at DESC, event_id DESC LIMIT {reading.PAGE_SIZE + 1}"
    )
    with database.engine.connect() as connection:
        lines = [str(line) for line in connection.execute(sa.text(query)).scalars()]
    return [line.split("(")[0].strip() for line in lines if "->" in line]


def _measure(site: Site) -> dict[str, object]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(site), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    pages = {}
    for name, path in PAGES.items():
        times, size = [], 0
        for _ in range(9):
            began = time.perf_counter()
            size = len(opener.open(f"http://127.0.0.1:{port}{path}").read())
            times.append(1000 * (time.perf_counter() - began))
        pages[name] = {
            "median_ms": round(statistics.median(times), 1),
            "most_ms": round(max(times), 1),
            "bytes": size,
        }
    server.should_exit = True
    thread.join()
    return {"pages": pages, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


if __name__ == "__main__":
    main()
