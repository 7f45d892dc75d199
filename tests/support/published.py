"""Metrics that a test lets the code publish, read back from the lines that it wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capstone_dagster.catalog.model import Metric
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.services import Services
from capstone_dagster.settings import Settings, read_settings
from capstone_dagster.standard_output import StandardOutput


class Published:
    """A file in place of standard output, and what metrics left there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("ab") as file:
            self._output = StandardOutput(file.fileno())

    def metrics(self, settings: Settings) -> Metrics:
        """Metrics that write here."""
        return Metrics(settings.model_copy(update={"metrics": "emf"}), self._output)

    def services(self, settings: Settings | None = None, **given: Any) -> Services:
        """Services whose metrics write here."""
        settings = settings or read_settings(**given)
        return Services(settings, self.metrics(settings))

    def lines(self) -> list[Mapping[str, Any]]:
        """Every line of metrics, oldest first."""
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def names(self) -> set[str]:
        """The names of the metrics that were published."""
        return {
            metric["Name"]
            for line in self.lines()
            for about in line["_aws"]["CloudWatchMetrics"]
            for metric in about["Metrics"]
        }

    def values(self, metric: Metric, **dimensions: str) -> list[float]:
        """The values of a metric, of those with these dimensions."""
        return [
            line[metric.name]
            for line in self.lines()
            if metric.name in line and all(line.get(name) == word for name, word in dimensions.items())
        ]
