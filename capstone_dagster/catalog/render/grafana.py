"""The list's dashboards as Grafana reads them, built from the types of its own SDK.

A graph keeps its title, lines and order; what nothing beside Prometheus measures is left out, and the host's
processors and memory stand where AWS's services had theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from grafana_foundation_sdk.builders import common, dashboard, logs, loki, prometheus, text, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.text import TextMode

from capstone_dagster.catalog.model import Dashboard, Graph, LogTable, Words
from capstone_dagster.catalog.open_stack import HOST_CPU_HIGH, HOST_MEMORY_HIGH, Rule

from .promql import NotMeasured, duration, of_expression, of_series, read_by

METRICS, LOGS = "prometheus", "loki"
"""The data sources' uids, which `observability/grafana/` provisions."""
RECENT_ERRORS = (
    '{job="capstone"} | json | level=~"(?i)error|critical" | line_format "{{.component}} {{.message}}"'
)
_COLORS = {"target": "green", "warning": "orange", "critical": "red"}
_UNITS = {"%": "percent", "s": "s", "ms": "ms", "": "short"}
_WIDTH = 24

Target = tuple[str, str]
"""PromQL and its label."""


def dashboard_file(listed: Dashboard) -> str:
    """A dashboard as JSON, to be provisioned."""
    built = dashboard.Dashboard("Capstone").uid(listed.name).refresh("1m").time("now-6h", "now").readonly()
    x = y = row = 0
    for panel, width, height in _panels(listed):
        if x + width > _WIDTH:
            x, y, row = 0, y + row, 0
        built = built.with_panel(panel.grid_pos(GridPos(h=height, w=width, x=x, y=y)))
        x, row = x + width, max(row, height)
    return json.dumps(built.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def targets(graph: Graph) -> list[Target]:
    """What a graph draws, as far as it is measured."""
    period = duration(graph.period_s)
    found: list[Target] = []
    hidden = {name for _, math, _ in graph.expressions for name in read_by(math)}
    for series in graph.series:
        if series.id not in hidden:
            label = " ".join(series.dimensions.values()) or series.id.replace("_", " ")
            try:
                found.append((of_series(series, period), label))
            except NotMeasured:
                continue
    for _, math, label in graph.expressions:
        read = [each for each in graph.series if each.id in read_by(math)]
        try:
            found.append((of_expression(math, read, period), label))
        except NotMeasured:
            continue
    return found


def host_targets() -> dict[str, list[Target]]:
    """Graphs of the host, by their titles."""
    rules: dict[str, Rule] = {"Host: CPU": HOST_CPU_HIGH, "Host: memory": HOST_MEMORY_HIGH}
    return {title: [(rule.promql or "", "in use")] for title, rule in rules.items()}


def _panels(
    listed: Dashboard,
) -> Iterator[tuple[timeseries.Panel | logs.Panel | text.Panel, int, int]]:
    for widget in listed.widgets:
        match widget:
            case Words():
                yield _words(widget), widget.width, widget.height
            case LogTable():
                for title, drawn in host_targets().items():
                    yield _timeseries(Graph(title, (), unit="%"), drawn), 12, 6
                yield _logs(widget), widget.width, widget.height
            case Graph():
                if drawn := targets(widget):
                    yield _timeseries(widget, drawn), widget.width, widget.height


def _timeseries(graph: Graph, drawn: list[Target]) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(graph.title)
        .datasource(DataSourceRef(type_val="prometheus", uid=METRICS))
        .unit(_UNITS.get(graph.unit, "short"))
        .min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if graph.stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if graph.lines:
        ordered = sorted(graph.lines, key=lambda line: line.value)
        steps = [Threshold(color="transparent", value=None)]
        steps += [Threshold(color=_COLORS[line.label], value=line.value) for line in ordered]
        panel = panel.thresholds(
            dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
        ).thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE))
    for number, (expression, label) in enumerate(drawn):
        query = prometheus.Dataquery().expr(expression).legend_format(label).ref_id(chr(ord("A") + number))
        panel = panel.with_target(query)
    return panel


def _words(words: Words) -> text.Panel:
    return text.Panel().title("").mode(TextMode.MARKDOWN).content(words.markdown).transparent(True)


def _logs(table: LogTable) -> logs.Panel:
    return (
        logs.Panel()
        .title(table.title)
        .datasource(DataSourceRef(type_val="loki", uid=LOGS))
        .show_time(True)
        .wrap_log_message(True)
        .with_target(loki.Dataquery().expr(RECENT_ERRORS).ref_id("A"))
    )
