"""What the local stack does under load: success, rate, how long each leg takes, and what grows meanwhile.

A number of users each upload a two-second clip, wait until it is analysed, and upload the next; then clips
arrive at nine tenths of the rate that this has shown, and at last a burst at once. With `--rows`, a
publication is compared with a bare COPY of the same rows, beside a million events that are there already.

    .venv/bin/python -m bench.load [--users 20] [--seconds 120] [--burst 200] [--record]
    .venv/bin/python -m bench.load --rows [--events 1000000] [--record]

The last line of the first is a JSON object: `videos_per_minute` and `success_rate` of the users' clips,
`p50_s` and `p95_s` from upload to published, and `growth_mb`, by which memory grew from the first to the last
quarter.
"""

from __future__ import annotations

import argparse
import json
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

import psutil
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

COMMAND = ".venv/bin/python -m bench.load"
CLIP_S = 2.0
# A look at the memory of all processes takes a tenth of a second of processor time.
LOOK_EVERY_S = 5.0
DRAINED_WITHIN_S = 1800.0
ROWS = 2000
ROWS_AT_ONCE = 50_000
STEADY_SHARE = 0.9
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
        samples: (seconds, memory in MB, connections).
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


def steady(load: Load, per_minute: float, seconds: float) -> None:
    """Clips arrive at a fixed rate, whatever has become of those before."""
    began = time.monotonic()
    keys = []
    for number in range(int(per_minute * seconds / 60)):
        time.sleep(max(0.0, began + number * 60 / per_minute - time.monotonic()))
        keys.append(f"steady/{number}.mp4")
        load.upload(keys[-1])
    wait_for(lambda: all(load.is_over(key) for key in keys))


@dataclass(frozen=True)
class Described:
    """What became of some uploads.

    Attributes:
        legs: seconds from upload until a run is on record, begins, and has published.
    """

    uploads: int
    done: int
    span_s: float
    legs: Mapping[str, Sequence[float]]

    @property
    def per_minute(self) -> float:
        return 60 * self.done / self.span_s

    def row(self, name: str) -> list[object]:
        share = f"{100 * self.done / self.uploads:.1f} %"
        return [name, self.uploads, share, f"{self.per_minute:.1f}", *map(percentiles, self.legs.values())]


def described(load: Load, began: float) -> Described:
    """What became of the uploads since `began`, seconds since 1970."""
    keys = {key for key, at in load.uploaded.items() if at >= began}
    rows = {row["key"]: row for row in load.store.transact(current_status) if row["key"] in keys}
    with psycopg.connect(_url(load.stack, "dagster")) as dagster:
        runs = {upload: (created, begun) for upload, created, begun in dagster.execute(RUNS)}
    legs: dict[str, list[float]] = {"queued": [], "begun": [], "analysed": []}
    for key, row in rows.items():
        if row["state"] == "done":
            created, started = runs[row["upload_id"]]
            uploaded = load.uploaded[key]
            legs["queued"].append(float(created) - uploaded)
            legs["begun"].append((started or float(created)) - uploaded)
            legs["analysed"].append(row["updated_at"].timestamp() - uploaded)
    span_s = max(row["updated_at"].timestamp() for row in rows.values()) - began
    return Described(len(keys), len(legs["analysed"]), span_s, legs)


def quarters(load: Load) -> tuple[list[float], list[float]]:
    """(memory in MB, connections): medians of the first and of the last quarter of the samples."""
    size = max(1, len(load.samples) // 4)
    first, last = load.samples[:size], load.samples[-size:]
    before, after = (
        [statistics.median(each[place] for each in part) for place in (1, 2)] for part in (first, last)
    )
    return before, after


def persisting(store: Database, present: int) -> list[object]:
    """Rows a second of a publication, and of a bare COPY of the same rows into a table like it."""

    def publication(name: str, rows: Sequence[Mapping[str, Any]]) -> float:
        store.transact(record_upload, replace(UPLOAD, upload_id=name, video_id=name, key=f"load/{name}.mp4"))
        analysis = replace(
            ANALYSIS, analysis_id=name, detection_id=name, upload_id=name, video_id=name, events=len(rows)
        )
        began = time.monotonic()
        store.transact(publish_analysis, analysis, rows, FACTS)
        return len(rows) / (time.monotonic() - began)

    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE bare (LIKE capstone.events INCLUDING ALL)")
    for number in range(present // ROWS_AT_ONCE):
        rows = [event_row(f"p{number}-{each}", each) for each in range(ROWS_AT_ONCE)]
        publication(f"present-{number}", rows)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO bare SELECT * FROM capstone.events")
        # LIKE leaves it out, and checking it is part of writing these rows.
        refers = "FOREIGN KEY (analysis_id) REFERENCES capstone.analyses ON DELETE CASCADE"
        connection.exec_driver_sql(f"ALTER TABLE bare ADD {refers}")
    rates: dict[str, list[float]] = {"published": [], "bare": []}
    for number in range(7):
        rows = [event_row(f"m{number}-{each}", each) for each in range(ROWS)]
        rates["published"].append(publication(f"measured-{number}", rows))
        rates["bare"].append(_copied(store, f"measured-{number}", rows))
    published, bare = (statistics.median(each) for each in rates.values())
    return [f"{present:,}", f"{published:,.0f}", f"{bare:,.0f}", f"{published / bare:.2f}"]


def _copied(store: Database, name: str, rows: Sequence[Mapping[str, Any]]) -> float:
    """Rows a second of a COPY into the table `bare`."""
    columns = ", ".join([*rows[0], "analysis_id", "video_id"])
    began = time.monotonic()
    with store.engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY bare ({columns}) FROM STDIN") as copy:
            for row in rows:
                values = [list(each) if isinstance(each, tuple) else each for each in row.values()]
                copy.write_row([*values, name, name])
    return len(rows) / (time.monotonic() - began)


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


def traffic(stack: LocalStack, clip: bytes, options: argparse.Namespace) -> tuple[str, dict[str, float]]:
    """Tables, and the figures of the last line."""
    load = Load(stack, clip, Database(stack.environment["CAPSTONE_DATABASE_URL"]))
    over = threading.Event()
    watcher = threading.Thread(target=load.watch, args=(over,))
    watcher.start()
    try:
        load.upload("warm/up.mp4")
        wait_for(lambda: load.is_over("warm/up.mp4"))
        began = time.time()
        closed_loop(load, options.users, options.seconds)
        users = described(load, began)
        lines = [users.row(f"{options.users} users, {options.seconds:.0f} s")]
        rate, began = STEADY_SHARE * users.per_minute, time.time()
        steady(load, rate, options.seconds / 2)
        lines.append(described(load, began).row(f"{rate:.1f} a minute, {options.seconds / 2:.0f} s"))
        began = time.time()
        burst(load, options.burst)
        lines.append(described(load, began).row(f"burst of {options.burst}"))
    finally:
        over.set()
        watcher.join()
    first, last = quarters(load)
    legs = ("upload → queued, s", "→ begun, s", "→ analysed, s")
    grown = [
        [name, f"{before:.0f}", f"{after:.0f}"]
        for name, before, after in zip(
            ("memory, MB (PSS)", "connections to PostgreSQL"), first, last, strict=True
        )
    ]
    tables = (
        table(["load", "videos", "analysed", "a minute", *legs], lines),
        table(["", "first quarter", "last quarter"], grown),
    )
    took = sorted(users.legs["analysed"])
    figures = {
        "videos_per_minute": round(users.per_minute, 1),
        "success_rate": round(users.done / users.uploads, 4),
        "p50_s": round(statistics.quantiles(took, n=100, method="inclusive")[49], 1),
        "p95_s": round(statistics.quantiles(took, n=100, method="inclusive")[94], 1),
        "growth_mb": round(last[0] - first[0], 1),
    }
    return "Legs: median / 95th / 99th percentile.\n\n" + "\n\n".join(tables), figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--burst", type=int, default=200)
    parser.add_argument("--rows", action="store_true", help="publishing against COPY, and no traffic")
    parser.add_argument("--events", type=int, default=1_000_000, help="present when publishing is measured")
    parser.add_argument("--record", action="store_true", help="write the result into bench/RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capstone-load-") as name:
        folder, figures = Path(name), dict[str, float]()
        with local_stack(
            folder / "state", webserver_port=None, with_dagster=not options.rows, before_dagster=prepare
        ) as stack:
            enter_environment(stack.environment)
            if options.rows:
                store = Database(stack.environment["CAPSTONE_DATABASE_URL"])
                columns = ["events present", "published rows/s", "bare COPY rows/s", "ratio"]
                title, body = "Publishing", table(columns, [persisting(store, options.events)])
                store.close()
            else:
                clip = beginning(DEMO_CLIP, folder / "clip.mp4", CLIP_S).read_bytes()
                title, (body, figures) = "Load", traffic(stack, clip, options)
    print(body)
    if options.record:
        record(title, f"{COMMAND}{' --rows' * options.rows} --record", body, ("dagster", "ministack"))
    if figures:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
