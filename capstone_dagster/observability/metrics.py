"""Counting and measuring, by the metrics of the list; whatever happens here, no caller fails of it."""

from __future__ import annotations

from capstone_dagster.observability.catalog.model import Metric
from capstone_dagster.settings import Settings


class Metrics:
    """Publishes values of declared metrics the way CAPSTONE_METRICS says."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def add(self, metric: Metric, value: float = 1, **dimensions: str) -> None:
        """Publish one value; a counter's is what it rises by.

        Args:
            dimensions: a value for each further dimension that the metric declares, in snake case.
        """
