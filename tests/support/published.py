"""Metrics that a test lets the code publish, read back from the spool."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstone_dagster.catalog.model import Metric
from capstone_dagster.logs.spool import segments


@dataclass(frozen=True)
class Published:
    """What was left in a spool by CAPSTONE_METRICS=put."""

    folder: Path

    def settings(self) -> dict[str, Any]:
        """What has metrics published here."""
        return {"metrics": "put", "log_spool": str(self.folder)}

    def lines(self) -> list[Mapping[str, Any]]:
        """Every line of metrics, oldest first."""
        return [
            json.loads(record.text)
            for segment in segments(self.folder)
            for record in segment.read(0, 1 << 24, True)[0]
            if '"_aws"' in record.text
        ]

    def names(self) -> set[str]:
        """The names of the metrics that were published."""
        return {
            told["Name"]
            for line in self.lines()
            for about in line["_aws"]["CloudWatchMetrics"]
            for told in about["Metrics"]
        }

    def values(self, metric: Metric, **dimensions: str) -> list[float]:
        """The values of a metric, of those with these dimensions."""
        return [
            line[metric.name]
            for line in self.lines()
            if metric.name in line and all(line.get(name) == word for name, word in dimensions.items())
        ]
