"""Adds up the metrics that the processes of this system send by UDP, for Prometheus.

Workers end before anybody could scrape them, so their values are pushed: `metrics/emission.py` sends each of
its lines here as well. Counters begin at 0 with this process, as Prometheus expects of a restart.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from capstone_dagster.catalog.metrics import METRICS
from capstone_dagster.catalog.model import Metric
from capstone_dagster.catalog.open_names import LABELS, buckets, label_name, open_name

log = logging.getLogger("capstone.metrics")

# The vital signs are published twice a minute, and a pass says once what its GPU did: an older value is no
# longer true.
_GAUGE_LASTS_S = 180.0
# As many as emission allows; a datagram may come from anybody on this host.
_MOST_VALUES = 32
_LONGEST_VALUE = 64
_LARGEST_DATAGRAM = 65_536


class ReceivedMetrics(Collector):
    """Every declared metric as a Prometheus metric, from its first scrape on.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        without_created: Callable[[], None] = prometheus_client.disable_created_metrics
        without_created()  # a series more for each counter, which nothing reads
        self._clock = clock
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._by_name = {metric.name: (metric, self._made(metric)) for metric in METRICS}
        self._values: dict[str, set[tuple[str, ...]]] = {metric.name: set() for metric in METRICS}
        self._gauges_at: dict[str, float] = {}
        self._refused = Counter(
            "capstone_metrics_refused",
            "Datagrams that are no metrics of the list.",
            registry=self._registry,
        )
        for metric, kept in self._by_name.values():
            for value in _known_values(metric):
                self._values[metric.name].add(value)
                if metric.dimensions and metric.kind != "gauge":
                    kept.labels(*value)

    def listen(self, address: str) -> None:
        """Take datagrams at `host:port` for as long as the process lives.

        Raises:
            OSError: the address is not this machine's, or is taken.
        """
        host, _, port = address.rpartition(":")
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            end.bind((host, int(port)))
        except BaseException:
            end.close()
            raise
        threading.Thread(target=self._receive, args=(end,), name="metrics", daemon=True).start()

    def take(self, datagram: bytes) -> None:
        """Add one line of the embedded metric format."""
        try:
            line = json.loads(datagram)
            names = [each["Name"] for about in line["_aws"]["CloudWatchMetrics"] for each in about["Metrics"]]
            found = [(*self._by_name[name], float(line[name])) for name in names]
            with self._lock:
                for metric, kept, value in found:
                    self._add(metric, kept, value, line)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._refused.inc()

    def collect(self) -> Iterator[Family]:
        """What is known now, without gauges that nobody has renewed."""
        with self._lock:
            old = [name for name, at in self._gauges_at.items() if self._clock() - at > _GAUGE_LASTS_S]
            for name in old:
                del self._gauges_at[name]
            families = list(self._registry.collect())
        unknown = {
            open_name(metric)
            for metric in METRICS
            if metric.kind == "gauge" and metric.name not in self._gauges_at
        }
        return (family for family in families if family.name not in unknown)

    def _made(self, metric: Metric) -> Any:
        labels = [label_name(each) for each in metric.dimensions]
        if metric.kind == "counter":
            return Counter(open_name(metric), metric.meaning, labels, registry=self._registry)
        if metric.kind == "gauge":
            return Gauge(open_name(metric), metric.meaning, labels, registry=self._registry)
        return Histogram(
            open_name(metric), metric.meaning, labels, registry=self._registry, buckets=buckets(metric)
        )

    def _add(self, metric: Metric, kept: Any, value: float, line: dict[str, Any]) -> None:
        words = tuple(line.get(each, "") for each in metric.dimensions)
        if not all(isinstance(word, str) and len(word) <= _LONGEST_VALUE for word in words):
            raise ValueError(words)
        if metric.kind == "gauge":
            # A value without its dimension is the whole: nothing is paused, for whatever reason.
            kept.clear()
            self._gauges_at[metric.name] = self._clock()
        elif not all(words):
            return  # a zero of the total, which the labels add up to
        seen = self._values[metric.name]
        if words not in seen and len(seen) >= _MOST_VALUES:
            raise ValueError(words)
        seen.add(words)
        one = kept.labels(*words) if words else kept
        if metric.kind == "counter":
            one.inc(value)
        elif metric.kind == "gauge":
            one.set(value)
        else:
            one.observe(value)

    def _receive(self, end: socket.socket) -> None:
        while True:
            try:
                self.take(end.recv(_LARGEST_DATAGRAM))
            except OSError as error:
                log.warning(f"A datagram of metrics is lost: {error}", extra={"action": "metrics.lost"})
                time.sleep(1)


def _known_values(metric: Metric) -> list[tuple[str, ...]]:
    if not metric.dimensions:
        return [()]
    [dimension] = metric.dimensions
    return [(value,) for value in LABELS[dimension]]
