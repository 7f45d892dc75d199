"""Asks a service, from outside, whether it works; and tells of it as a heartbeat, a minute apart.

A heartbeat that a service sends of itself would go on while it hangs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from capstone_dagster.catalog.metrics import HEARTBEAT
from capstone_dagster.metrics.emission import Metrics

log = logging.getLogger("capstone.heartbeats")

HealthCheck = Callable[[], str | None]
"""What is wrong with a service; None if nothing is. Answers within some seconds, and never raises."""

_TIMEOUT_S = 5
# Each of Dagster's daemons gives a sign every 30 s. Its own liveness check waits for half an hour, because a
# container is ended by it; here somebody is only told.
_SILENCE_S = 300.0
# Alarms count heartbeats by the minute: one in the middle of each is never in the next one by accident.
_SECOND_OF_MINUTE = 30.0
# A service that has not answered yet is starting, for so many minutes.
_MINUTES_TO_START = 5


def health_check_of(word: str) -> HealthCheck:
    """The check that a command line names: `daemon`, or the address of a web server."""
    if word == "daemon":
        return DaemonCheck(os.environ["DAGSTER_POSTGRES_URL"])
    return webserver(word)


def webserver(url: str) -> HealthCheck:
    """Whether Dagster's web server answers at `url`, as in http://127.0.0.1:3000."""
    # A proxy that the environment names is for other hosts.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def check() -> str | None:
        try:
            opener.open(f"{url}/server_info", timeout=_TIMEOUT_S).close()
        except Exception as error:
            return f"{url}/server_info does not answer: {error}"
        return None

    return check


class DaemonCheck:
    """Whether all of the daemon's loops, that have ever run since this began, still do.

    Reads the heartbeats that they leave in Dagster's storage: Dagster's own check of them takes seconds of a
    processor each time, for importing Dagster.

    Args:
        postgres_url: Dagster's storage, DAGSTER_POSTGRES_URL.
    """

    def __init__(self, postgres_url: str) -> None:
        self._url = postgres_url
        self._engine: Any = None
        self._running: set[str] = set()

    def __call__(self) -> str | None:
        try:
            silent = {name: age for name, age in self._ages().items() if age > _SILENCE_S}
        except Exception as error:
            # Its first line: the rest may quote the address with its password.
            return f"Dagster's storage does not answer: {type(error).__name__}"
        if not self._running:
            return "no heartbeat of the daemon yet"
        if gone := self._running & set(silent):
            return "no heartbeat for " + ", ".join(f"{silent[name]:.0f} s of {name}" for name in sorted(gone))
        return None

    def _ages(self) -> dict[str, float]:
        """Seconds since each loop's last heartbeat."""
        import sqlalchemy

        if self._engine is None:
            self._engine = sqlalchemy.create_engine(
                self._url,
                poolclass=sqlalchemy.NullPool,
                connect_args={
                    "connect_timeout": _TIMEOUT_S,
                    "options": f"-c statement_timeout={_TIMEOUT_S}s",
                },
            )
        with self._engine.connect() as connection:
            rows = connection.execute(
                sqlalchemy.text("SELECT daemon_type, timestamp FROM daemon_heartbeats")
            ).all()
        now = datetime.now(UTC)
        ages = {str(name): (now - _aware(at)).total_seconds() for name, at in rows}
        # Rows of loops that a former version had stay for ever.
        self._running |= {name for name, age in ages.items() if age <= _SILENCE_S}
        return ages


def send_heartbeats(
    checks: Mapping[str, HealthCheck],
    metrics: Metrics,
    stop: threading.Event,
    *,
    seconds_to_next: Callable[[], float] = lambda: 60 - (time.time() - _SECOND_OF_MINUTE) % 60,
) -> None:
    """Ask each service once a minute until `stop`, and count those that answer. Never raises.

    Args:
        checks: by the service's name, the metric's dimension.
    """
    missed = dict.fromkeys(checks, 0)
    well: set[str] = set()
    while not stop.wait(seconds_to_next()):
        for service, check in checks.items():
            with contextlib.suppress(Exception):
                wrong = check()
                if wrong is None:
                    metrics.add(HEARTBEAT, service=service)
                    if missed[service] and service in well:
                        log.info("The %s answers again.", service, extra={"action": "heartbeat.recovered"})
                    well.add(service)
                    missed[service] = 0
                    continue
                missed[service] += 1
                if missed[service] == (1 if service in well else _MINUTES_TO_START):
                    log.warning(
                        "The %s does not answer as it should: %s.",
                        service,
                        wrong,
                        extra={"action": "heartbeat.missed", "service": service},
                    )


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
