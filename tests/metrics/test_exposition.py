"""`/metrics` and `/health`: values that processes send, and figures of what is stored."""

import socket
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from capstone_dagster.catalog import metrics as declared
from capstone_dagster.catalog.metrics import METRICS
from capstone_dagster.catalog.open_names import open_name
from capstone_dagster.dagster_private import InstigatorsTable, JobTickTable, RunsTable, RunTagsTable
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.metrics.exposition import Exposed, Exposition
from capstone_dagster.metrics.received import ReceivedMetrics
from capstone_dagster.metrics.stored import (
    DAGSTER_STORAGE,
    EVENT_STORE,
    Figure,
    StoredFigures,
    dagster_figures,
    event_figures,
    tick_figure,
)
from capstone_dagster.run_tags import FAILURE_TAG
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from tests.support.dagster_home import dagster_home
from tests.support.published import Published
from tests.support.waiting import wait_for

Samples = dict[str, float]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def samples(text: str) -> Samples:
    """Each sample by its name and labels, as Prometheus reads them."""
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exposition(received: ReceivedMetrics | None = None, **looks: Any) -> Exposition:
    return Exposition(received or ReceivedMetrics(), StoredFigures(looks))


def scraped(exposed: Exposition) -> Samples:
    return samples(bytes(exposed.metrics().body).decode())


# --- what processes send ---


@pytest.fixture
def collector() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    return address


def test_what_a_process_publishes_is_added_up(collector, tmp_path):
    received = ReceivedMetrics()
    received.listen(collector)
    published = Published(tmp_path / "out").metrics(read_settings(metrics_collector=collector))

    published.add(declared.RUNS_FAILED, failure_class="gpu-error")
    published.add(declared.RUNS_FAILED, failure_class="gpu-error")
    published.add(declared.RUNS_FAILED, 0)
    published.add(declared.RUNS_QUEUED, 7)
    published.add(declared.LEG_DURATION, 0.3, leg=declared.STARTED)

    exposed = exposition(received)
    wait_for(
        "the last datagram",
        lambda: scraped(exposed).get("capstone_leg_duration_seconds_count started") == 1 or None,
    )
    found = scraped(exposed)
    assert found["capstone_runs_failed_total gpu-error"] == 2
    assert found["capstone_runs_failed_total internal"] == 0  # known before its first value
    assert found["capstone_runs_queued"] == 7
    assert found["capstone_leg_duration_seconds_bucket 0.25 started"] == 0
    assert found["capstone_leg_duration_seconds_bucket 0.5 started"] == 1


def test_a_collector_that_is_away_costs_nothing(tmp_path):
    for collector in ("127.0.0.1:1", "no.such.host.invalid:8125", "127.0.0.1:99999"):
        metrics = Published(tmp_path / "out").metrics(read_settings(metrics_collector=collector))
        for _ in range(3):
            metrics.add(declared.RUNS_STARTED)


def line(metric: Any, value: float, **dimensions: str) -> bytes:
    [text] = Lines().of(metric, value, **dimensions)
    return text.encode()


class Lines:
    """Takes lines in place of standard output."""

    lost = 0

    def __init__(self) -> None:
        self.taken: list[str] = []

    def write(self, text: str) -> bool:
        self.taken.append(text)
        return True

    def of(self, metric: Any, value: float, **dimensions: str) -> list[str]:
        Metrics(read_settings(metrics="emf"), self).add(metric, value, **dimensions)  # type: ignore[arg-type]
        return self.taken


def test_a_gauge_that_nobody_renews_is_no_longer_known():
    clock = Clock()
    received = ReceivedMetrics(clock)
    received.take(line(declared.GPU_UTILIZATION, 93))
    exposed = exposition(received)
    assert scraped(exposed)["capstone_gpu_utilization_percent"] == 93

    clock.now += 181

    assert "capstone_gpu_utilization_percent" not in scraped(exposed)


def test_a_pause_that_ends_or_changes_its_class_leaves_no_trace():
    received = ReceivedMetrics()
    exposed = exposition(received)

    def paused() -> Samples:
        return {name: value for name, value in scraped(exposed).items() if "intake_paused" in name}

    received.take(line(declared.INTAKE_PAUSED, 1, failure_class="gpu-error"))
    received.take(line(declared.INTAKE_PAUSED, 1, failure_class="operator"))
    assert paused() == {"capstone_intake_paused operator": 1}
    received.take(line(declared.INTAKE_PAUSED, 0))
    assert paused() == {"capstone_intake_paused ": 0}


@given(st.one_of(st.binary(max_size=50), st.just(line(declared.RUNS_STARTED, 1).replace(b"1.0", b'"x"'))))
def test_datagrams_of_strangers_are_counted_and_change_nothing(datagram):
    received = ReceivedMetrics()
    exposed = exposition(received)
    before = scraped(exposed)

    received.take(datagram)

    after = scraped(exposed)
    assert after["capstone_metrics_refused_total"] == 1
    assert {name for name in before if before[name] != after[name]} <= {
        "capstone_metrics_refused_total",
        *(name for name in before if name.startswith("process_")),
    }


def test_labels_are_bounded_whatever_is_sent():
    received = ReceivedMetrics()
    for number in range(100):
        text = line(declared.RUNS_FAILED, 1, failure_class="internal").replace(b"internal", b"x%d" % number)
        received.take(text)

    found = [name for name in scraped(exposition(received)) if name.startswith("capstone_runs_failed_total")]
    assert len(found) == 32


def test_every_declared_metric_has_a_name_of_its_own():
    names = [open_name(metric) for metric in METRICS]
    assert len(set(names)) == len(names)
    assert open_name(declared.RUNS_FAILED) == "capstone_runs_failed_total"
    assert open_name(declared.S3_ACCESS_DENIED) == "capstone_s3_access_denied_total"
    assert open_name(declared.RUN_DURATION) == "capstone_run_duration_seconds"


# --- what is stored ---


def values(figures: Iterable[Figure]) -> dict[str, Any]:
    return {each.name: each.values.get(()) if () in each.values else dict(each.values) for each in figures}


NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def runs() -> Iterator[sa.Connection]:
    """Dagster's tables, empty."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        for table in (RunsTable, JobTickTable):
            table.metadata.create_all(connection)
        yield connection


def add_run(
    connection: sa.Connection, number: int, status: str, age_s: float, failure: str | None = None
) -> None:
    at = NOW.replace(tzinfo=None) - timedelta(seconds=age_s)
    row = {"run_id": str(number), "status": status, "create_timestamp": at, "update_timestamp": at}
    connection.execute(sa.insert(RunsTable).values(**row))
    if failure is not None:
        tag = {"run_id": str(number), "key": FAILURE_TAG, "value": failure}
        connection.execute(sa.insert(RunTagsTable).values(**tag))


def test_runs_are_counted_by_status_and_class(runs):
    for number, (status, age_s, failure) in enumerate(
        [
            ("SUCCESS", 50, None),
            ("SUCCESS", 90, None),
            ("FAILURE", 40, "gpu-error"),
            ("FAILURE", 30, "none"),
            ("QUEUED", 20, None),
            ("QUEUED", 70, None),
        ]
    ):
        add_run(runs, number, status, age_s, failure)

    found = values(dagster_figures(runs, ["SENSOR"], now=NOW.timestamp()))

    assert found["capstone_runs"]["success",] == 2
    assert found["capstone_runs"]["queued",] == 2
    assert found["capstone_runs"]["started",] == 0
    assert found["capstone_runs_by_failure"]["gpu-error",] == 1
    assert ("none",) not in found["capstone_runs_by_failure"]
    assert found["capstone_oldest_queued_run_seconds"] == 70
    assert found["capstone_last_success_seconds"] == 50


def test_ticks_of_the_last_ten_minutes_are_counted_by_status(runs):
    at = NOW.replace(tzinfo=None)
    assert set(tick_figure(runs, NOW).values.values()) == {0}
    runs.execute(sa.insert(InstigatorsTable).values(selector_id="known"))
    for selector, status, age_s in [
        ("known", "SKIPPED", 5),
        ("known", "SKIPPED", 590),
        ("known", "FAILURE", 5),
        ("known", "FAILURE", 610),
        ("removed", "SUCCESS", 5),
    ]:
        row = {"selector_id": selector, "status": status, "timestamp": at - timedelta(seconds=age_s)}
        runs.execute(sa.insert(JobTickTable).values(**row))

    found = tick_figure(runs, NOW).values

    assert (found["skipped",], found["failure",], found["success",]) == (2, 1, 0)


def test_without_data_there_are_zeros_and_no_ages(runs):
    found = values(dagster_figures(runs, ["SENSOR"], now=NOW.timestamp()))

    assert set(found["capstone_runs"].values()) == {0}
    assert found["capstone_oldest_queued_run_seconds"] == 0
    assert "capstone_last_success_seconds" not in found
    assert "capstone_daemon_silence_seconds" not in found


def test_a_clock_that_went_back_gives_no_negative_age(runs):
    add_run(runs, 1, "QUEUED", -500)
    add_run(runs, 2, "SUCCESS", -500)

    found = values(dagster_figures(runs, [], now=NOW.timestamp()))

    assert found["capstone_oldest_queued_run_seconds"] == 0
    assert found["capstone_last_success_seconds"] == 0


def test_uploads_and_notices_are_counted(database: Database):
    found = values(database.transact(lambda connection: list(event_figures(connection, now=time.time()))))

    assert found["capstone_uploads"] == {
        ("queued",): 0,
        ("waiting-for-compute",): 0,
        ("running",): 0,
        ("failed",): 0,
    }
    assert found["capstone_oldest_unfinished_upload_seconds"] == 0
    assert found["capstone_outbox_waiting"] == 0


def test_figures_are_read_once_in_ten_seconds():
    clock, looked = Clock(), []

    def look() -> list[Figure]:
        looked.append(clock.now)
        return [Figure("capstone_x", "x", {(): len(looked)})]

    stored = StoredFigures({DAGSTER_STORAGE: look}, clock)
    for _ in range(5):
        stored.read()
    clock.now += 10
    stored.read()

    assert len(looked) == 2


def test_a_source_that_fails_hides_no_other():
    def fails() -> list[Figure]:
        raise OSError("away")

    found = scraped(exposition(**{EVENT_STORE: fails, DAGSTER_STORAGE: lambda: [Figure("x", "x", {(): 1})]}))

    assert found["capstone_source_up event-store"] == 0
    assert found["capstone_source_up dagster-storage"] == 1
    assert found["x"] == 1


# --- over HTTP ---


async def answer(request: Request) -> PlainTextResponse:
    if request.url.path == "/broken":
        raise RuntimeError("broken")
    return PlainTextResponse("answered", 404 if request.url.path == "/missing" else 200)


def client(**looks: Any) -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", answer)])
    return TestClient(Exposed(app, exposition(**looks)), raise_server_exceptions=False)


def test_answers_are_counted_by_their_status():
    web = client()
    for path in ("/a", "/b", "/missing", "/broken"):
        web.get(path)

    found = samples(web.get("/metrics").text)

    assert [found[f"capstone_http_requests_total {code}"] for code in ("2xx", "4xx", "5xx")] == [2, 1, 1]
    assert found["capstone_http_request_seconds_count"] == 4


SILENCE = "capstone_daemon_silence_seconds"


@pytest.mark.parametrize(
    ("silence_s", "store", "status", "failing"),
    [
        (12, lambda: [], 200, []),
        (301, lambda: [], 503, ["daemon"]),
        (None, lambda: [], 503, ["daemon"]),
        (12, lambda: 1 / 0, 503, ["event-store"]),
    ],
)
def test_health_names_what_fails(silence_s, store, status, failing):
    beats = [] if silence_s is None else [Figure(SILENCE, "", {(): silence_s})]
    response = client(**{DAGSTER_STORAGE: lambda: beats, EVENT_STORE: store}).get("/health")

    assert response.status_code == status
    parts = response.json()
    assert parts.pop("status") == ("failing" if failing else "ok")
    assert [name for name, state in parts.items() if state == "failing"] == failing


def test_dagster_reads_its_figures_through_the_instance(tmp_path):
    from capstone_dagster.metrics.stored import of_dagster

    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        assert values(of_dagster(instance))["capstone_runs"]["success",] == 0
