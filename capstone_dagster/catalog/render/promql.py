"""Series and metric math of the list as PromQL.

Statistics look back over a period that slides, as CloudWatch's do. A counter's `FILL(…, 0)` is dropped: its
series begin with the webserver, so that without them nothing is known, and nothing must fire.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from capstone_dagster.catalog.model import AwsMetric, Metric, Series
from capstone_dagster.catalog.open_names import label_name, open_name

_OPERATORS: Mapping[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Lt: "<",
    ast.LtE: "<=",
}
_OVER_TIME = {"Maximum": "max", "Minimum": "min", "Average": "avg"}
# Numbers of the deployment that expressions name.
_OPEN_NUMBERS = {"database_storage_gib": '(max(node_filesystem_size_bytes{mountpoint="/"}) / 1073741824)'}


class NotMeasured(ValueError):
    """Nothing beside Prometheus gives this value."""


def of_series(series: Series, period: str) -> str:
    """A value without labels: the series' statistic over a period.

    Args:
        period: `5m`, say.

    Raises:
        NotMeasured: it is a metric of AWS that has no equivalent.
    """
    name, kind = _selected(series)
    if kind == "counter":
        rise = f"increase({name}[{period}])"
        # The rise is extrapolated to the period's ends: three events must not count as 3.2.
        return f"sum(round({rise}))" if series.metric.unit == "Count" else f"sum({rise})"
    if kind == "measure":
        metric, _, labels = name.partition("{")
        labels = labels and "{" + labels
        if series.statistic == "Average":
            rates = [f"sum(rate({metric}_{part}{labels}[{period}]))" for part in ("sum", "count")]
            return f"{rates[0]} / {rates[1]}"
        quantile = 1.0 if series.statistic == "Maximum" else int(series.statistic.removeprefix("p")) / 100
        return f"histogram_quantile({quantile:g}, sum by (le) (rate({metric}_bucket{labels}[{period}])))"
    over = _OVER_TIME[series.statistic]
    if re.fullmatch(r"\w+({.*})?", name):
        return f"{over}({over}_over_time({name}[{period}]))"
    return f"{over}_over_time(({name})[{period}:])"


def of_expression(expression: str, series: Sequence[Series], period: str) -> str:
    """Metric math over the ids of series.

    Raises:
        NotMeasured: as `of_series`.
        ValueError: it uses what none of the list's expressions did when this was written.
    """
    text = re.sub(r"{(\w+)}", r"\1", expression).replace(" AND ", " and ")
    values = {each.id: of_series(each, period) for each in series}
    counters = {each.id for each in series if _selected(each)[1] == "counter"}

    def read(node: ast.AST) -> str:
        match node:
            case ast.Expression(body=body):
                return read(body)
            case ast.Constant(value=int() | float() as value):
                return f"{value:g}"
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.Name(id=name) if name in _OPEN_NUMBERS:
                return _OPEN_NUMBERS[name]
            case ast.BinOp(left=left, op=op, right=right):
                return f"({read(left)} {_OPERATORS[type(op)]} {read(right)})"
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return f"({read(left)} {_OPERATORS[type(op)]} {read(right)})"
            case ast.BoolOp(op=ast.And(), values=parts):
                return "(" + " and ".join(map(read, parts)) + ")"
            case ast.Call(func=ast.Name(id="FILL"), args=[ast.Name(id=name), ast.Constant(value=0)]):
                return values[name] if name in counters else f"({values[name]} or vector(0))"
            case ast.Call(func=ast.Name(id="IF"), args=[condition, then, ast.Constant(value=0)]):
                return f"(({read(then)} and {read(condition)}) or vector(0))"
        raise ValueError(f"{expression!r}: {ast.unparse(node)} has no translation to PromQL.")

    return read(ast.parse(text, mode="eval"))


def read_by(expression: str) -> set[str]:
    """The names in metric math: ids of series, and numbers of the deployment."""
    return set(re.findall(r"\b[a-z]\w*\b", expression))


def duration(seconds: float) -> str:
    """`5m` for 300."""
    return f"{seconds / 60:g}m" if seconds % 60 == 0 and seconds else f"{seconds:g}s"


def _selected(series: Series) -> tuple[str, str]:
    """The name with its labels, and the kind."""
    metric = series.metric
    if isinstance(metric, Metric):
        labels = ",".join(f'{label_name(name)}="{value}"' for name, value in series.dimensions.items())
        return open_name(metric) + (f"{{{labels}}}" if labels else ""), metric.kind
    return _of_aws(metric), _kind_of_aws(metric)


def _of_aws(metric: AwsMetric) -> str:
    if metric.promql is None:
        raise NotMeasured(f"{metric.namespace} {metric.name} has no equivalent beside Prometheus.")
    return metric.promql


def _kind_of_aws(metric: AwsMetric) -> str:
    name = re.sub(r"{.*}", "", _of_aws(metric))
    if re.fullmatch(r"\w+", name) is None:
        return "gauge"
    return "counter" if name.endswith("_total") else "measure"
