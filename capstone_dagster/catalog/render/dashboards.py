"""A dashboard of the list as the JSON that CloudWatch reads ("Dashboard Body Structure and Syntax")."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from capstone_dagster.catalog.model import (
    NAMESPACE,
    Dashboard,
    Graph,
    Line,
    LogTable,
    Metric,
    Series,
    Words,
)

from .deployment import log_group_name

COLUMNS = 24
# The colours of a traffic light, in shades that CloudWatch uses itself.
_COLORS = {"target": "#2ca02c", "warning": "#ff7f0e", "critical": "#d62728"}


def widgets(dashboard: Dashboard) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Each widget with its condition, placed from the left, in rows as high as the highest in them.

    Raises:
        ValueError: a widget is wider than the dashboard, or an always present one stands after a
            conditional one, and would leave a gap where the condition does not hold.
    """
    x = y = row_height = 0
    conditional = False
    for widget in dashboard.widgets:
        condition = widget.condition if isinstance(widget, Graph) else None
        if conditional and condition is None:
            raise ValueError(f"{dashboard.name}: {_title(widget)} stands after a conditional widget")
        if widget.width > COLUMNS:
            raise ValueError(f"{dashboard.name}: {_title(widget)} is {widget.width} wide, of {COLUMNS}")
        if x + widget.width > COLUMNS or (condition is not None and not conditional):
            x, y, row_height = 0, y + row_height, 0
        conditional = condition is not None
        place = {"x": x, "y": y, "width": widget.width, "height": widget.height}
        kind, properties = _widget(widget)
        yield condition, {"type": kind, **place, "properties": properties}
        x, row_height = x + widget.width, max(row_height, widget.height)


def as_json(value: Any) -> str:
    """JSON in one line, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def dimensions(series: Series) -> dict[str, str]:
    """The dimensions by which CloudWatch finds a series; ours include the environment."""
    if isinstance(series.metric, Metric):
        return {"Environment": "${environment}", **series.dimensions}
    resources = {name: f"${{{key}}}" for name, key in series.metric.dimensions.items()}
    return {**resources, **series.dimensions}


def namespace(series: Series) -> str:
    return NAMESPACE if isinstance(series.metric, Metric) else series.metric.namespace


def with_open_numbers(expression: str) -> str:
    """Metric math in which `{key}`, a number of the deployment, is spelled as in every other text."""
    return re.sub(r"(?<!\$)\{(\w+)\}", r"${\1}", expression)


def _widget(widget: Graph | LogTable | Words) -> tuple[str, dict[str, Any]]:
    match widget:
        case Graph():
            return "metric", _graph(widget)
        case LogTable():
            sources = " | ".join(f"SOURCE '{log_group_name(name)}'" for name in widget.query.groups)
            query = f"{sources} | {widget.query.text}"
            return "log", {"title": widget.title, "region": "${region}", "view": "table", "query": query}
        case Words():
            return "text", {"markdown": widget.markdown}


def _graph(graph: Graph) -> dict[str, Any]:
    read = {word for _, math, _ in graph.expressions for word in re.findall(r"\b[a-z]\w*\b", math)}
    lines: list[list[Any]] = []
    for series in graph.series:
        label = " ".join(series.dimensions.values()) or series.id.replace("_", " ")
        options: dict[str, Any] = {"id": series.id, "stat": series.statistic, "label": label}
        if series.id in read:
            options["visible"] = False
        path = [word for pair in dimensions(series).items() for word in pair]
        lines.append([namespace(series), series.metric.name, *path, options])
    for name, math, label in graph.expressions:
        lines.append([{"id": name, "expression": with_open_numbers(math), "label": label}])
    axis: dict[str, Any] = {"min": 0}
    if graph.unit:
        axis |= {"label": graph.unit, "showUnits": False}
    properties: dict[str, Any] = {
        "title": graph.title,
        "region": "${region}",
        "view": "timeSeries",
        "stacked": graph.stacked,
        "period": graph.period_s,
        "metrics": lines,
        "yAxis": {"left": axis},
    }
    if graph.lines:
        properties["annotations"] = {"horizontal": [_line(each) for each in graph.lines]}
    return properties


def _line(line: Line) -> dict[str, Any]:
    return {"label": line.label, "value": line.value, "color": _COLORS[line.label]}


def _title(widget: Graph | LogTable | Words) -> str:
    return repr(widget.markdown if isinstance(widget, Words) else widget.title)
