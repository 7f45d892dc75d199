"""Alertmanager, by its own tool and with Prometheus as real programs: one root cause, one notice."""

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest

from capstone_dagster.catalog.open_stack import RULES
from capstone_dagster.catalog.render.prometheus import alertmanager_file
from capstone_dagster.local.observing import (
    ALERTMANAGER,
    PROMETHEUS,
    Observers,
    monitoring_login,
    start_observers,
)
from capstone_dagster.local.processes import free_port
from capstone_dagster.storage.database import Database
from tests.support.waiting import scaled, wait_for

AMTOOL = shutil.which("amtool")
installed = pytest.mark.skipif(
    None in (AMTOOL, shutil.which(PROMETHEUS), shutil.which(ALERTMANAGER)),
    reason="Prometheus or Alertmanager is not installed: apt-get install prometheus prometheus-alertmanager",
)
# A minute and a half pass in a second.
PACE = 90
LONGEST_WAIT_S = 300 / PACE  # for a cause, of all notices
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000}


def faster(text: str) -> str:
    """Configuration with all its durations divided."""
    return re.sub(
        r"(?<![\w.])(\d+(?:\.\d+)?)([smh])\b",
        lambda found: f"{round(float(found[1]) * UNITS_MS[found[2]] / PACE)}ms",
        text,
    )


class System:
    """What Prometheus scrapes, and where Alertmanager's notices arrive."""

    def __init__(self) -> None:
        self.database_down = False
        self.notices: list[tuple[str, str]] = []
        self._failures = 0
        system = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(system.metrics().encode())

            def do_POST(self) -> None:
                notice = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                system.notices.append((notice["status"], notice["groupLabels"]["incident"]))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def metrics(self) -> str:
        """A database that is down, as the system shows it: refusals, ticks that fail, a pause, silence."""
        down = self.database_down
        self._failures += 5 * down
        return f"""
pg_up {int(not down)}
capstone_database_connection_failures_total {100 + self._failures}
capstone_sensor_tick_errors_total {100 + self._failures}
capstone_intake_paused{{failure_class="{"database-unavailable" if down else ""}"}} {int(down)}
capstone_daemon_silence_seconds {400 if down else 10}
capstone_seconds_without_success {9000 if down else 0}
"""


@pytest.fixture
def system() -> Iterator[System]:
    system = System()
    yield system
    system.server.shutdown()
    system.server.server_close()


@pytest.fixture
def observers(system: System, tmp_path: Path) -> Iterator[Observers]:
    running = start_observers(
        tmp_path,
        {},
        operators={"webhook_configs": [{"url": f"http://{system.address}/", "send_resolved": True}]},
        targets={"capstone": system.address},
        adapt=faster,
    )
    yield running
    running.stop()


@installed
def test_one_root_cause_gives_one_notice(system: System, observers: Observers) -> None:
    firing = ("firing", "DatabaseUnavailable")
    system.database_down = True
    wait_for("a notice", lambda: firing in system.notices)
    # Five minutes of this pace and more: the sensors' alarm wants two periods of five, and waits for two.
    alerts = f"{observers.links['Prometheus']}/api/v1/alerts"
    wait_for(
        "the effects' alarms", lambda: {"SensorTicksFailing", "DaemonHeartbeatLost"} <= firing_at(alerts)
    )
    time.sleep(scaled(LONGEST_WAIT_S + 1))  # nothing shows that no notice will come
    assert system.notices == [firing]

    system.database_down = False
    wait_for("the end", lambda: len(system.notices) > 1)
    wait_for("silence", lambda: not {"SensorTicksFailing", "DatabaseUnavailable"} & firing_at(alerts))
    assert system.notices == [firing, ("resolved", "DatabaseUnavailable")]


def firing_at(url: str) -> set[str]:
    """Names of the alerts that fire."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        alerts = json.load(answer)["data"]["alerts"]
    return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


def test_the_exporters_login_reads_statistics_and_no_events(database: Database) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    monitoring_login(url)
    again = monitoring_login(url)  # as the next start does
    with psycopg.connect(again) as connection:
        assert connection.execute("SELECT count(*) FROM pg_stat_activity").fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT 1 FROM capstone.events")


@installed
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ({"role": "notice", "incident": "DatabaseUnavailable"}, "operators"),
        ({"role": "notice", "incident": "UploadsStuck", "wait": "2m"}, "operators"),
        ({"role": "sign", "incident": "DatabaseUnavailable"}, "nobody"),
        ({"role": "suppressor", "incident": "UploadsStuck"}, "nobody"),
    ],
)
def test_notices_reach_operators_and_nothing_else_does(labels, receiver, tmp_path):
    file = tmp_path / "alertmanager.yml"
    file.write_text(alertmanager_file(RULES))
    given = [f"{name}={value}" for name, value in labels.items()]
    test = [
        AMTOOL,
        "config",
        "routes",
        "test",
        f"--config.file={file}",
        f"--verify.receivers={receiver}",
        *given,
    ]
    said = subprocess.run(test, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr


@installed
def test_alertmanager_accepts_its_configuration(tmp_path):
    file = tmp_path / "alertmanager.yml"
    file.write_text(alertmanager_file(RULES))
    said = subprocess.run([AMTOOL, "check-config", file], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
