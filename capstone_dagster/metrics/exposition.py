"""`/metrics` for Prometheus and `/health`: a layer before a web application, whose answers it counts."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import dagster as dg
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from capstone_dagster.metrics.received import ReceivedMetrics
from capstone_dagster.metrics.stored import (
    DAGSTER_STORAGE,
    EVENT_STORE,
    QUEUES,
    Look,
    StoredFigures,
    healthy,
    of_dagster,
    of_events,
    of_queues,
)
from capstone_dagster.metrics.waiting_messages import queues_at
from capstone_dagster.settings import Settings
from capstone_dagster.storage.database import Database

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

METRICS_PATH, HEALTH_PATH = "/metrics", "/health"
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30)

log = logging.getLogger("capstone.metrics")


class Exposition:
    """All that `/metrics` and `/health` answer from."""

    def __init__(self, received: ReceivedMetrics, stored: StoredFigures) -> None:
        self.stored = stored
        self.registry = CollectorRegistry()
        for collector in (received, stored):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "capstone_http_requests",
            "Answers of the webserver, by the first digit of their status.",
            ["code"],
            registry=self.registry,
        )
        for code in ("2xx", "3xx", "4xx", "5xx"):
            self._requests.labels(code)
        self._seconds = Histogram(
            "capstone_http_request_seconds",
            "How long the webserver took to begin its answer.",
            registry=self.registry,
            buckets=_BUCKETS,
        )

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer of the application."""
        self._requests.labels(f"{status // 100}xx").inc()
        self._seconds.observe(seconds)

    def metrics(self) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def health(self) -> Response:
        """200 while every source answers and the daemon gives signs of life, else 503 with what does not."""
        parts = healthy(self.stored.read())
        well = all(parts.values())
        body = {
            "status": "ok" if well else "failing",
            **{name: "ok" if ok else "failing" for name, ok in parts.items()},
        }
        return JSONResponse(body, 200 if well else 503)


class Exposed:
    """ASGI middleware that answers the two paths and counts the answers to all others."""

    def __init__(self, app: ASGIApp, exposition: Exposition) -> None:
        self._app = app
        self._exposition = exposition

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in (METRICS_PATH, HEALTH_PATH) and scope["method"] in ("GET", "HEAD"):
            answer = self._exposition.metrics if scope["path"] == METRICS_PATH else self._exposition.health
            await (await run_in_threadpool(answer))(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._exposition.answered(status, time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            if not status:  # the server answers 500 in its place
                self._exposition.answered(500, time.perf_counter() - began)
            raise


def open_exposition(instance: dg.DagsterInstance, settings: Settings) -> Exposition:
    """Of this instance and of what the settings name; connects to nothing before the first scrape."""
    received = ReceivedMetrics()
    if settings.metrics_collector is not None:
        try:
            received.listen(settings.metrics_collector)
        except OSError as error:
            log.error(
                f"CAPSTONE_METRICS_COLLECTOR={settings.metrics_collector} cannot be listened to: {error}. "
                "`/metrics` shows what is stored, and no counts.",
                extra={"action": "metrics.refused"},
            )
    looks: dict[str, Look] = {DAGSTER_STORAGE: lambda: of_dagster(instance)}
    if settings.has_event_store:
        database = Database(settings.event_store_url())
        looks[EVENT_STORE] = lambda: of_events(database)
    if settings.queue_url is not None:
        url = settings.queue_url
        looks[QUEUES] = lambda: of_queues(queues_at(url))
    return Exposition(received, StoredFigures(looks))
