"""From lines in CloudWatch's embedded metric format to PutMetricData's requests, within that call's limits.

Values of one metric, with the same dimensions, unit and minute, travel as one datum of distinct values and
how often each occurred, from which CloudWatch computes percentiles as if each had been sent alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# PutMetricData's limits: data a request, bytes a request, distinct values a datum, dimensions a datum.
MOST_DATA = 1000
MOST_BYTES = 1_000_000
MOST_VALUES = 150
MOST_DIMENSIONS = 30
# A value beyond is refused, and the request with it.
_GREATEST = 2.0**360
_MINUTE_MS = 60_000
# PutMetricData takes what is up to two weeks old and up to two hours ahead.
_OLDEST_MS, _NEWEST_MS = -14 * 24 * 3600 * 1000, 2 * 3600 * 1000
# What one value and its count take in the most talkative of the protocols that boto3 knows for this call.
_VALUE_BYTES = 110
_DATUM_BYTES = 250
_DIMENSION_BYTES = 90


class MalformedMetrics(ValueError):
    """A line that says it carries metrics, but not any that CloudWatch would take."""


@dataclass(frozen=True, slots=True)
class Series:
    """What makes two values belong to one datum."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...]
    unit: str
    minute_ms: int


Values = Counter[float]


def embedded_metrics(line: str) -> Mapping[str, Any] | None:
    """The line's object if it carries metrics, None if it is a log line like others."""
    if '"_aws"' not in line:
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("_aws"), dict) else None


def values_of(fields: Mapping[str, Any], now_ms: int) -> list[tuple[Series, float]]:
    """Every value in an object of the embedded metric format, once for each of its sets of dimensions.

    Raises:
        MalformedMetrics: it names a metric or a dimension that it has no value for, or one that
            PutMetricData refuses.
    """
    try:
        about = fields["_aws"]
        minute_ms = int(about["Timestamp"]) // _MINUTE_MS * _MINUTE_MS
        if not _OLDEST_MS < minute_ms - now_ms < _NEWEST_MS:
            raise MalformedMetrics("metrics older than two weeks, or of the future, are not taken")
        return [
            (
                Series(
                    str(each["Namespace"]), str(metric["Name"]), named, metric.get("Unit", "None"), minute_ms
                ),
                value,
            )
            for each in about["CloudWatchMetrics"]
            for names in each.get("Dimensions") or [[]]
            for named in [_dimensions(fields, names)]
            for metric in each["Metrics"]
            for value in _numbers(fields, metric["Name"])
        ]
    except MalformedMetrics:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise MalformedMetrics(f"a line of metrics is malformed ({type(error).__name__}: {error})") from error


class MetricRequest:
    """Values gathered for one request, or for one of each namespace where there are several.

    Attributes:
        lines: how many lines they are from.
    """

    def __init__(self, most_lines: int) -> None:
        self.lines = 0
        self._most_lines = most_lines
        self._series: dict[Series, Values] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """How many data it has."""
        return sum(math.ceil(len(values) / MOST_VALUES) for values in self._series.values())

    def add(self, values: Sequence[tuple[Series, float]]) -> bool:
        """Take a line's values, or none of them if they are too much beside what is here.

        An empty request takes any line: `requests` splits it.
        """
        new_bytes = sum(
            (_VALUE_BYTES if value not in self._series.get(series, ()) else 0)
            + (_series_bytes(series) if series not in self._series else 0)
            for series, value in values
        )
        # Each value begins a datum at the worst.
        too_many = len(self) + len(values) > MOST_DATA or self.lines >= self._most_lines
        if self.lines and (too_many or self._bytes + new_bytes > MOST_BYTES):
            return False
        for series, value in values:
            self._series.setdefault(series, Counter())[value] += 1
        self._bytes += new_bytes
        self.lines += 1
        return True

    def requests(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Namespace and `MetricData` of each request."""
        for namespace in sorted({series.namespace for series in self._series}):
            data = [
                datum
                for series, values in self._series.items()
                if series.namespace == namespace
                for datum in _data(series, values)
            ]
            for first in range(0, len(data), MOST_DATA):
                yield namespace, data[first : first + MOST_DATA]


def _dimensions(fields: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if len(names) > MOST_DIMENSIONS:
        raise ValueError(f"{len(names)} dimensions, more than {MOST_DIMENSIONS}")
    named = tuple((str(name), str(fields[name])) for name in sorted(names))
    if not all(value for _, value in named):
        raise ValueError(f"a dimension of {names} is empty")
    return named


def _numbers(fields: Mapping[str, Any], name: str) -> list[float]:
    found = fields[name]
    numbers = [float(value) for value in (found if isinstance(found, list) else [found])]
    for number in numbers:
        if not math.isfinite(number) or abs(number) > _GREATEST:
            raise ValueError(f"{name} is {number}")
    return numbers


def _series_bytes(series: Series) -> int:
    words = [series.name, series.unit, *(word for pair in series.dimensions for word in pair)]
    # A letter takes up to twelve characters in a form's encoding.
    return _DATUM_BYTES + _DIMENSION_BYTES * len(series.dimensions) + 12 * sum(map(len, words))


def _data(series: Series, values: Values) -> Iterator[dict[str, Any]]:
    pairs = sorted(values.items())
    for first in range(0, len(pairs), MOST_VALUES):
        some = pairs[first : first + MOST_VALUES]
        yield {
            "MetricName": series.name,
            "Dimensions": [{"Name": name, "Value": value} for name, value in series.dimensions],
            "Timestamp": datetime.fromtimestamp(series.minute_ms / 1000, UTC),
            "Unit": series.unit,
            "Values": [value for value, _ in some],
            "Counts": [float(count) for _, count in some],
        }
