"""Publishes counts and measurements as lines of CloudWatch's embedded metric format; never fails a caller.

The same lines go to Prometheus's collector (`metrics/received.py`) where there is one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import socket
import threading
import time
from collections.abc import Mapping

from capstone_dagster.catalog.metrics import METRICS, TELEMETRY_DROPPED
from capstone_dagster.catalog.model import NAMESPACE, Metric
from capstone_dagster.settings import Settings
from capstone_dagster.standard_output import StandardOutput, standard_output

log = logging.getLogger("capstone.metrics")

strict = False
"""Whether a refused value raises :class:`MetricRefused`, as in tests; otherwise it is logged once."""

# CloudWatch bills each distinct value as a metric of its own. The list of failure classes, the longest of
# those that are dimensions, has half as many.
_MOST_VALUES = 32
# What a dimension's value looks like: a word of a fixed list.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
# And what it never is: part of an id (hexadecimal digits, as video, upload and run ids end in), or a number.
_PART_OF_ID = re.compile(r"(?:^|[_.-])[0-9a-f]{8,}(?:$|[_.-])|\d{4}", re.IGNORECASE)


class MetricRefused(ValueError):
    """A value that the list of metrics does not provide for: a fault in the code that gave it."""


class Metrics:
    """Publishes values of declared metrics, unless CAPSTONE_METRICS is `off`; safe to share between threads.

    Each line goes to the process's own standard output, whatever redirects it later.

    Args:
        output: in place of the process's standard output.
    """

    def __init__(self, settings: Settings, output: StandardOutput | None = None) -> None:
        self._environment = settings.environment
        self._output = (output or standard_output()) if settings.metrics == "emf" else None
        self._collector = _connect(settings.metrics_collector) if self._output is not None else None
        self._reported = self._output.lost if self._output is not None else 0
        self._logged: set[str] = set()
        self._values: dict[tuple[str, str], set[str]] = {}
        self._lock = threading.RLock()

    def add(self, metric: Metric, value: float = 1, **dimensions: str) -> None:
        """Publish one value; a counter's is what it rises by.

        Args:
            dimensions: a value for each further dimension that the metric declares, in snake case. A zero
                may do without: it is one of the total.

        Raises:
            MetricRefused: only where :data:`strict`.
        """
        self.add_all({metric: value}, **dimensions)

    def add_all(self, values: Mapping[Metric, float], **dimensions: str) -> None:
        """Publish values of metrics with the same further dimensions that were found out together.

        Raises:
            MetricRefused: only where :data:`strict`.
        """
        accepted: dict[Metric, float] = {}
        for metric, value in values.items():
            if problem := self._problem(metric, value, dimensions):
                if strict:
                    raise MetricRefused(problem)
                self._log_once(problem)
            else:
                accepted[metric] = float(value)
        if not accepted or self._output is None:
            return
        try:
            self._write(self._output, self._line(accepted, dimensions))
        except Exception as error:  # law: a metric is never worth a failure
            self._log_once(f"Metrics cannot be published: {error!r}.")

    def _problem(self, metric: Metric, value: float, dimensions: Mapping[str, str]) -> str | None:
        """Why this value must not be published; None if it may."""
        if metric not in METRICS:
            return f"{metric!r} is no metric of catalog/metrics.py: declare it there."
        try:
            finite = math.isfinite(value)
        except (TypeError, OverflowError):
            finite = False
        if not finite:
            return f"Metric {metric.name}: expected a finite number, found {value!r}."
        declared = {_snake_case(name) for name in metric.dimensions}
        given = set(dimensions)
        if given != declared and (given or value != 0):
            return (
                f"Metric {metric.name}: expected the dimensions {sorted(declared)}, found {sorted(given)}. "
                "Declare them in catalog/metrics.py."
            )
        for name, word in dimensions.items():
            if not isinstance(word, str) or not _WORD.fullmatch(word) or _PART_OF_ID.search(word):
                return (
                    f"Metric {metric.name}: {name}={word!r} looks like an id or a number. A dimension takes "
                    "words of a short list; ids belong into the log."
                )
            with self._lock:
                seen = self._values.setdefault((metric.name, name), set())
                if word not in seen and len(seen) >= _MOST_VALUES:
                    return f"Metric {metric.name}: {name} has more than {_MOST_VALUES} different values."
                seen.add(word)
        return None

    def _line(self, values: Mapping[Metric, float], dimensions: Mapping[str, str]) -> str:
        """An object of CloudWatch's embedded metric format."""
        named = {_camel_case(name): word for name, word in dimensions.items()}
        sets = [["Environment"], *(["Environment", name] for name in named)]
        names = [{"Name": metric.name, "Unit": metric.unit} for metric in values]
        about = {"Namespace": NAMESPACE, "Dimensions": sets, "Metrics": names}
        return json.dumps(
            {
                "_aws": {"Timestamp": time.time_ns() // 1_000_000, "CloudWatchMetrics": [about]},
                "Environment": self._environment,
                **named,
                **{metric.name: value for metric, value in values.items()},
            }
        )

    def _write(self, output: StandardOutput, line: str) -> None:
        if self._collector is not None:
            with contextlib.suppress(OSError):  # nobody listens, or its buffer is full: it is not waited for
                self._collector.send(line.encode())
        if not output.write(line):
            self._log_once("Standard output takes nothing: lines are dropped until it does.")
            return
        with self._lock:
            dropped, self._reported = output.lost - self._reported, output.lost
        if dropped and not output.write(
            self._line({TELEMETRY_DROPPED: float(dropped)}, {"channel": "stdout"})
        ):
            with self._lock:
                self._reported -= dropped

    def _log_once(self, problem: str) -> None:
        """Log each problem once: code that gives a wrong value gives it often."""
        with self._lock, contextlib.suppress(Exception):
            if problem not in self._logged and len(self._logged) < _MOST_VALUES:
                self._logged.add(problem)
                log.warning(problem, extra={"action": "metrics.refused"})


def _connect(collector: str | None) -> socket.socket | None:
    """A socket to the collector, whose name is looked up once; None if there is none or it has no address."""
    if collector is None:
        return None
    host, _, port = collector.rpartition(":")
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setblocking(False)
    try:
        end.connect((host, int(port)))
    except (OSError, OverflowError) as error:
        end.close()
        log.warning(
            f"CAPSTONE_METRICS_COLLECTOR={collector} cannot be reached: {error}. Prometheus misses this "
            "process's metrics.",
            extra={"action": "metrics.refused"},
        )
        return None
    return end


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=.)(?=[A-Z])", "_", name).lower()


def _camel_case(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
