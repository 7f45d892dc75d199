"""What the local stack does under load: success, rate, how long each leg takes, and what grows meanwhile.

A number of users each upload a two-second clip, wait until it is analysed, and upload the next; then a burst
arrives at once. At the end a publication is compared with a bare COPY of the same rows, beside a million
events that are there already.

    .venv/bin/python -m bench.load [--users 20] [--seconds 120] [--burst 200] [--events 1000000] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg

from bench.chaos import beginning
from bench.report import record, table
from capstone_dagster.local.aws import client
from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.demo import prepare
from capstone_dagster.local.postgres import EVENT_DATABASE
from capstone_dagster.local.stack import LocalStack, enter_environment, local_stack
from capstone_dagster.storage.analyses import publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.schema import FINAL_STATES
from capstone_dagster.storage.video_status import current_status
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import ANALYSIS, FACTS, UPLOAD, event_row

COMMAND = ".venv/bin/python -m bench.load --record"
CLIP_S = 2.0
LOOK_EVERY_S = 2.0
DRAINED_WITHIN_S = 1800.0
ROWS = 2000
# Newest run of each upload: when it was put on record and when it began, as Dagster knows it.
RUNS = """
SELECT t.value, extract(epoch FROM r.create_timestamp AT TIME ZONE 'UTC'), r.start_time
FROM runs r JOIN run_tags t ON t.run_id = r.run_id AND t.key = '.dagster/capstone.upload_id'
"""


@dataclass
class Load:
    """The running stack and what is seen of it.

    Attributes:
        uploaded: key → when its upload began, seconds since 1970.
        samples: (seconds, memory in MB, connections), every two seconds.
    """

    stack: LocalStack
    clip: bytes
    store: Database
    uploaded: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    states: Mapping[str, str] = field(default_factory=dict)

    def upload(self, key: str) -> None:
        self.uploaded[key] = time.time()
        body = self.clip + bytes(len(self.uploaded))  # behind the last box: no part of the film
        s3 = client("s3", self.stack.aws.endpoint_url)
        s3.put_object(Bucket=self.stack.resources.raw_bucket, Key=key, Body=body)

    def watch(self, over: threading.Event) -> None:
        """Look at the uploads' states, and at memory and connections, until it is over."""
        while not over.is_set():
            rows = self.store.transact(current_status)
            self.states = {row["key"]: row["state"] for row in rows}
            self.samples.append((time.time(), memory_mb(), connections(self.stack)))
            over.wait(LOOK_EVERY_S)

    def is_over(self, key: str) -> bool:
        return self.states.get(key) in FINAL_STATES


def closed_loop(load: Load, users: int, seconds: float) -> None:
    """Each user waits for one video before the next."""
    until = time.monotonic() + seconds

    def user(number: int) -> None:
        clip = 0
        while time.monotonic() < until:
            key = f"load/{number}-{clip}.mp4"
            load.upload(key)
            wait_for(partial(load.is_over, key))
            clip += 1

    with ThreadPoolExecutor(users) as pool:
        for done in [pool.submit(user, number) for number in range(users)]:
            done.result()


def burst(load: Load, count: int) -> None:
    keys = [f"burst/{number}.mp4" for number in range(count)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(load.upload, keys))
    wait_for(lambda: all(load.is_over(key) for key in keys))


def described(load: Load, name: str, began: float) -> list[object]:
    """One line of the table: what became of the uploads since `began`, and how long each leg took."""
    keys = [key for key, at in load.uploaded.items() if at >= began]
    rows = {row["key"]: row for row in load.store.transact(current_status) if row["key"] in keys}
    done = {key: row for key, row in rows.items() if row["state"] == "done"}
    with psycopg.connect(_url(load.stack, "dagster")) as dagster:
        runs = {upload: (created, began) for upload, created, began in dagster.execute(RUNS)}
    legs: dict[str, list[float]] = {"queued": [], "begun": [], "analysed": []}
    for key, row in done.items():
        created, started = runs[row["upload_id"]]
        legs["queued"].append(float(created) - load.uploaded[key])
        legs["begun"].append((started or float(created)) - load.uploaded[key])
        legs["analysed"].append(row["updated_at"].timestamp() - load.uploaded[key])
    span_s = max(row["updated_at"].timestamp() for row in rows.values()) - began
    share = f"{100 * len(done) / len(keys):.1f} %"
    return [name, len(keys), share, f"{60 * len(done) / span_s:.1f}", *map(percentiles, legs.values())]


def growth(load: Load) -> list[list[object]]:
    """Medians of the first and the last quarter of the samples."""
    quarter = max(1, len(load.samples) // 4)
    first, last = load.samples[:quarter], load.samples[-quarter:]
    return [
        [what, *(f"{statistics.median(each[place] for each in part):.0f}" for part in (first, last))]
        for place, what in ((1, "memory, MB (PSS)"), (2, "connections to PostgreSQL"))
    ]


def persisting(store: Database, present: int) -> list[object]:
    """Rows a second of a publication, and of a bare COPY of the same rows into a table like it."""
    upload = replace(UPLOAD, upload_id="load", video_id="load")
    store.transact(record_upload, upload)
    analysis = replace(ANALYSIS, upload_id="load", video_id="load", events=0)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNLOGGED TABLE bare (LIKE capstone.events INCLUDING ALL)")
    for number in range(present // 50_000):
        rows = [event_row(f"p{number}-{each}", each) for each in range(50_000)]
        filled = replace(analysis, analysis_id=f"present-{number}", events=len(rows))
        store.transact(publish_analysis, filled, rows, FACTS)
    rates: dict[str, list[float]] = {"published": [], "bare": []}
    for number in range(7):
        rows = [event_row(f"m{number}-{each}", each) for each in range(ROWS)]
        measured = replace(analysis, analysis_id=f"measured-{number}", events=ROWS)
        began = time.monotonic()
        store.transact(publish_analysis, measured, rows, FACTS)
        rates["published"].append(ROWS / (time.monotonic() - began))
        names = list(rows[0])
        began = time.monotonic()
        with store.engine.begin() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            columns = ", ".join([*names, "analysis_id", "video_id"])
            with driver.cursor() as cursor, cursor.copy(f"COPY bare ({columns}) FROM STDIN") as copy:
                for row in rows:
                    values = [list(each) if isinstance(each, tuple) else each for each in row.values()]
                    copy.write_row([*values, f"measured-{number}", "load"])
        rates["bare"].append(ROWS / (time.monotonic() - began))
    published, bare = (statistics.median(each) for each in rates.values())
    return [f"{present:,}", f"{published:,.0f}", f"{bare:,.0f}", f"{published / bare:.2f}"]


def percentiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "–"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return f"{cuts[49]:.1f} / {cuts[94]:.1f} / {cuts[98]:.1f}"


def memory_mb() -> float:
    """Of this process and all below it; shared pages count once."""
    total = 0
    me = psutil.Process()
    for process in me.children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1e6


def connections(stack: LocalStack) -> int:
    with psycopg.connect(_url(stack, EVENT_DATABASE)) as database:
        row = database.execute("SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL").fetchone()
    return 0 if row is None else int(row[0])


def wait_for(poll: Callable[[], Any]) -> None:
    give_up = time.monotonic() + DRAINED_WITHIN_S
    while not poll():
        assert time.monotonic() < give_up, "not drained in time"
        time.sleep(0.2)


def _url(stack: LocalStack, database: str) -> str:
    return stack.postgres.url(database, "psycopg").replace("+psycopg", "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--burst", type=int, default=200)
    parser.add_argument("--events", type=int, default=1_000_000, help="present when publishing is measured")
    parser.add_argument("--record", action="store_true", help="write the result into bench/RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capstone-load-") as name:
        folder = Path(name)
        clip = beginning(DEMO_CLIP, folder / "clip.mp4", CLIP_S).read_bytes()
        with local_stack(folder / "state", webserver_port=None, before_dagster=prepare) as stack:
            enter_environment(stack.environment)
            load = Load(stack, clip, Database(stack.environment["CAPSTONE_DATABASE_URL"]))
            over = threading.Event()
            watcher = threading.Thread(target=load.watch, args=(over,))
            watcher.start()
            load.upload("warm/up.mp4")
            wait_for(lambda: load.is_over("warm/up.mp4"))
            lines = []
            for what, work in (
                (f"{options.users} users, {options.seconds:.0f} s",
                 lambda: closed_loop(load, options.users, options.seconds)),
                (f"burst of {options.burst}", lambda: burst(load, options.burst)),
            ):  # fmt: skip
                began = time.time()
                work()
                lines.append(described(load, what, began))
            over.set()
            watcher.join()
            tables = [
                table(
                    [
                        "load",
                        "videos",
                        "analysed",
                        "a minute",
                        "upload → queued, s",
                        "→ begun, s",
                        "→ analysed, s",
                    ],
                    lines,
                ),
                table(["", "at the beginning", "at the end"], growth(load)),
                table(
                    ["events present", "published rows/s", "bare COPY rows/s", "ratio"],
                    [persisting(load.store, options.events)],
                ),
            ]
    body = "Legs: median / 95th / 99th percentile.\n\n" + "\n\n".join(tables)
    print(body)
    if options.record:
        record("Load", COMMAND, body, ("dagster", "ministack"))


if __name__ == "__main__":
    main()
