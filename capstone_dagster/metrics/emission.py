"""Counting and measuring, by the metrics of the list; whatever happens here, no caller fails of it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import threading
import time
from collections.abc import Mapping

from capstone_dagster.catalog.log_groups import VIDEO_ANALYSIS
from capstone_dagster.catalog.metrics import METRICS, TELEMETRY_DROPPED
from capstone_dagster.catalog.model import NAMESPACE, Metric
from capstone_dagster.logs.json_lines import shared_spool
from capstone_dagster.logs.standard_output import StandardOutput, standard_output
from capstone_dagster.settings import Settings

log = logging.getLogger("capstone.metrics")

strict = False
"""Whether a value that is refused raises :class:`MetricRefused`, as in tests; else it is told of once."""

# CloudWatch bills each distinct value as a metric of its own. The list of failure classes, the longest of
# those that are dimensions, has half as many.
_MOST_VALUES = 32
# What a dimension's value looks like: a word of a list that somebody wrote down.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
# What it never is: part of an id (hexadecimal digits, as video, upload and run ids end in), or a number.
_PART_OF_ID = re.compile(r"(?:^|[_.-])[0-9a-f]{8,}(?:$|[_.-])|\d{4}", re.IGNORECASE)


class MetricRefused(ValueError):
    """A value that the list of metrics does not provide for: a fault in the code that gave it."""


class Metrics:
    """Publishes values of declared metrics the way CAPSTONE_METRICS says; usable from all threads.

    `emf` writes to the process's own standard output, which Dagster redirects during a step. `put` leaves the
    line in the spool, from where the shipper sends it as PutMetricData.

    Args:
        output: in place of the process's standard output.
    """

    def __init__(self, settings: Settings, output: StandardOutput | None = None) -> None:
        self._environment = settings.environment
        self._mode = settings.metrics
        self._output = (output or standard_output()) if self._mode == "emf" else None
        self._spool = shared_spool(settings) if self._mode == "put" else None
        self._dropped = 0
        self._told: set[str] = set()
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
                self._tell(problem)
            else:
                accepted[metric] = float(value)
        if not accepted or self._mode == "off":
            return
        try:
            self._write(self._line(accepted, dimensions))
        except Exception as error:  # law: a metric is never worth a failure
            self._tell(f"Metrics cannot be published: {error!r}.")

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
        told = [{"Name": metric.name, "Unit": metric.unit} for metric in values]
        about = {"Namespace": NAMESPACE, "Dimensions": sets, "Metrics": told}
        return json.dumps(
            {
                "_aws": {"Timestamp": time.time_ns() // 1_000_000, "CloudWatchMetrics": [about]},
                "Environment": self._environment,
                **named,
                **{metric.name: value for metric, value in values.items()},
            }
        )

    def _write(self, line: str) -> None:
        if self._output is None:
            if self._spool is None:
                self._tell("CAPSTONE_METRICS is put, which needs CAPSTONE_LOG_SPOOL: metrics are dropped.")
            else:
                # What the spool has no room for it counts itself.
                self._spool.append(VIDEO_ANALYSIS.name, line)
            return
        if not self._output.write(line):
            self._lose(1)
            self._tell("Standard output takes nothing: metrics are dropped until it does.")
            return
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped and not self._output.write(
            self._line({TELEMETRY_DROPPED: float(dropped)}, {"channel": "metrics"})
        ):
            self._lose(dropped)

    def _lose(self, lines: int) -> None:
        with self._lock:
            self._dropped += lines

    def _tell(self, problem: str) -> None:
        """Once each, and not too many: whoever gives a wrong value gives it often."""
        with self._lock, contextlib.suppress(Exception):
            if problem not in self._told and len(self._told) < _MOST_VALUES:
                self._told.add(problem)
                log.warning(problem, extra={"action": "metrics.refused"})


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=.)(?=[A-Z])", "_", name).lower()


def _camel_case(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
