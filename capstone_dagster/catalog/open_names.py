"""The list's metrics as Prometheus names them, and the values that their labels take.

Every series that a declared metric can have is known before its first value: a counter that first appears
with its first event would hide that event from `increase()`, and what labels take is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from capstone_dagster.failures.classes import FailureClass

from .alarms import DAEMON
from .dashboard import SENSORS
from .metrics import LEGS
from .model import Metric

JOB = "capstone"
"""The scrape job of this system's own `/metrics`."""

# Values of each dimension. Of `Service` only the daemon: the webserver is what is scraped.
LABELS: Mapping[str, tuple[str, ...]] = {
    "FailureClass": (*(each.value for each in FailureClass), "duplicate-job", "operator"),
    "Service": (DAEMON,),
    "Sensor": SENSORS,
    "Channel": ("stdout", "traces"),
    "Leg": LEGS,
}
_BUCKETS: Mapping[str, tuple[float, ...]] = {
    "Seconds": (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400),
    "Count": (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 100000),
    "Count/Second": (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000),
}


def open_name(metric: Metric) -> str:
    """`RunsFailed` is `capstone_runs_failed_total`, `RunDuration` is `capstone_run_duration_seconds`."""
    name = f"{JOB}_{snake_case(metric.name)}"
    if metric.unit == "Seconds" and "seconds" not in name:
        name += "_seconds"
    if metric.unit == "Percent":
        name += "_percent"
    return f"{name}_total" if metric.kind == "counter" else name


def label_name(dimension: str) -> str:
    """`FailureClass` is `failure_class`."""
    return snake_case(dimension)


def buckets(metric: Metric) -> tuple[float, ...]:
    """Upper bounds of a measure's histogram."""
    return _BUCKETS[metric.unit]


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
