"""The catalog as Markdown tables, for docs/observability.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from capstone_dagster.catalog.composites import composites, notifier
from capstone_dagster.catalog.model import (
    Alarm,
    AnomalyAlarm,
    AwsMetric,
    Composite,
    Dashboard,
    Graph,
    LogGroup,
    LogTable,
    Metric,
    SavedQuery,
    Series,
    Words,
)

_COMPARED = {
    "GreaterThanThreshold": ">",
    "GreaterThanOrEqualToThreshold": "≥",
    "LessThanThreshold": "<",
    "LessThanOrEqualToThreshold": "≤",
}


def log_groups(groups: Iterable[LogGroup]) -> str:
    """Names, levels, days, who carries lines there."""
    return _table(
        ("group", "from level", "kept for", "carried by", "holds"),
        (
            (_code(each.name), each.level, f"{each.retention_days} days", each.carrier, each.meaning)
            for each in groups
        ),
    )


def metrics(listed: Iterable[Metric]) -> str:
    """Names, units, dimensions, meanings."""
    return _table(
        ("metric", "unit", "kind", "dimensions", "meaning"),
        (
            (
                _code(each.name),
                each.unit,
                each.kind,
                ", ".join(map(_code, ("Environment", *each.dimensions))),
                each.meaning,
            )
            for each in listed
        ),
    )


def alarms(listed: Sequence[Alarm], anomalies: Sequence[AnomalyAlarm]) -> str:
    """Every alarm: when it fires, what missing data means, whom it notifies, its page of the runbook."""
    rows = [
        (
            _code(each.name) + (f" (under `{each.condition}`)" if each.condition else ""),
            each.meaning,
            _rings_when(each),
            f"`{each.missing.treatment}`: {each.missing.why}",
            _code(notifier(each)),
            f"{each.owner}, {each.severity}",
            _runbook(each.runbook),
        )
        for each in listed
    ]
    rows += [
        (
            _code(each.name),
            each.meaning,
            f"{_series(each.series)} outside of {each.band:g} standard deviations, "
            f"{_how_often(each.period_s, each.periods, each.datapoints)}; CloudWatch's model, unproven",
            "`notBreaching`: Hours without a video are ordinary.",
            _code(each.name),
            f"{each.owner}, {each.severity}",
            _runbook(each.runbook),
        )
        for each in anomalies
    ]
    return _table(("alarm", "means", "rings when", "without data", "notifies as", "owner", "runbook"), rows)


def notifiers(listed: Sequence[Alarm]) -> str:
    """What tells in place of alarms: of which, and what keeps it back."""
    made = composites(listed)
    by_name = {each.name: each for each in made}
    return _table(
        (
            "notifies as",
            "rings while any of these rings",
            "quiet while any of these rings",
            "waits first",
            "and afterwards",
        ),
        (
            (
                _code(each.name),
                ", ".join(map(_code, each.any_of)),
                _kept_back_by(each, by_name),
                f"{each.wait_s} s" if each.suppressor else "",
                f"{each.extension_s} s" if each.suppressor else "",
            )
            for each in made
            if each.notifies
        ),
    )


def dashboard(listed: Dashboard) -> str:
    """Widgets in reading order, with what they draw and their lines."""
    rows = []
    for widget in listed.widgets:
        match widget:
            case Graph():
                drawn = "; ".join(
                    [label for _, _, label in widget.expressions]
                    or list(dict.fromkeys(_series(each) for each in widget.series))
                )
                lines = ", ".join(f"{each.label} {each.value:g}" for each in widget.lines)
                rows.append((widget.title, drawn, widget.unit, lines))
            case LogTable():
                rows.append((widget.title, f"lines found by `{widget.query.name}`", "", ""))
            case Words():
                pass
    return _table(("widget", "draws", "unit", "lines"), rows)


def queries(listed: Iterable[SavedQuery]) -> str:
    """Each query with its text, as it stands in CloudWatch under `capstone/`."""
    return "\n\n".join(
        f"**`{each.name}`** {each.meaning} Reads {', '.join(map(_code, each.groups))}.\n\n"
        f"```text\n{each.text}\n```"
        for each in listed
    )


def _rings_when(alarm: Alarm) -> str:
    what = ", ".join(f"`{each.id}` = {_series(each)}" for each in alarm.series)
    value = _code(alarm.expression) if alarm.expression else _code(alarm.series[0].id)
    often = _how_often(alarm.period_s, alarm.periods, alarm.datapoints)
    return f"{value} {_COMPARED[alarm.comparison]} {_number(alarm.threshold)} {often}; {what}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _how_often(period_s: int, periods: int, datapoints: int) -> str:
    return f"in {period_s} s" if periods == 1 else f"in {datapoints} of {periods} × {period_s} s"


def _series(series: Series) -> str:
    metric = series.metric
    name = f"{metric.namespace} {metric.name}" if isinstance(metric, AwsMetric) else metric.name
    of = "".join(f", {key} {value}" for key, value in series.dimensions.items())
    return f"{series.statistic} of {name}{of}"


def _kept_back_by(composite: Composite, by_name: dict[str, Composite]) -> str:
    if composite.suppressor is None:
        return ""
    suppressor = by_name.get(composite.suppressor)
    causes = (composite.suppressor,) if suppressor is None or suppressor.notifies else suppressor.any_of
    return ", ".join(map(_code, causes))


def _runbook(anchor: str) -> str:
    return f"[{anchor}](runbook.md#{anchor})"


def _code(text: str) -> str:
    return f"`{text}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    # A bar would end the cell, also within code.
    return "\n".join("| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in lines)
