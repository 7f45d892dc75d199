"""The dashboard as CloudWatch reads it: nothing on it refers to what does not exist, nothing is missing."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest

from capstone_dagster.catalog import aws_metrics as aws
from capstone_dagster.catalog import metrics as own
from capstone_dagster.catalog.dashboard import (
    HAS_LOAD_BALANCER,
    OPERATIONS,
    SENSORS,
)
from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.catalog.model import NAMESPACE, Statistic
from capstone_dagster.catalog.render.dashboards import as_json
from capstone_dagster.definitions import defs
from capstone_dagster.failures.classes import FailureClass
from tests.catalog import insights
from tests.catalog.alarms.metric_math import MetricMath
from tests.catalog.deployment import NAMES, body, filled

# CloudWatch's: columns of a dashboard, widgets on it, metrics of a widget ("Dashboard Body Structure and
# Syntax", service quotas). The issue asks for no more than 500 metrics on the whole of it.
COLUMNS, MOST_WIDGETS, MOST_METRICS = 24, 500, 500
# A template with the dashboard in it can then still be given to CloudFormation directly.
MOST_BYTES = 51_200
# The functions of metric math that are used here.
FUNCTIONS = {"IF", "FILL"}

Widget = dict[str, Any]


@pytest.fixture(params=[frozenset(), frozenset({HAS_LOAD_BALANCER})], ids=["no-address", "address"])
def widgets(request: pytest.FixtureRequest) -> list[Widget]:
    """What a deployment is given, its names filled in."""
    rendered = filled(body(OPERATIONS, request.param))
    found: list[Widget] = json.loads(as_json(rendered))["widgets"]
    return found


def metrics_of(widget: Widget) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Each line of a graph: its path (none for an expression) and its options."""
    for line in widget["properties"].get("metrics", []):
        *path, options = line
        yield path, options


def graph(title: str) -> Widget:
    [found] = [
        widget
        for widget in body(OPERATIONS, frozenset({HAS_LOAD_BALANCER}))["widgets"]
        if widget["properties"].get("title") == title
    ]
    return dict(found)


def test_widgets_fill_the_grid_without_overlap(widgets: list[Widget]) -> None:
    taken: set[tuple[int, int]] = set()
    for widget in widgets:
        x, y, width, height = (widget[name] for name in ("x", "y", "width", "height"))
        assert {type(value) for value in (x, y, width, height)} == {int}
        assert x >= 0
        assert width >= 1
        assert x + width <= COLUMNS
        assert y >= 0
        assert height >= 1
        cells = set(itertools.product(range(x, x + width), range(y, y + height)))
        assert not cells & taken, widget
        taken |= cells
    # No holes either: the whole of it is one block.
    assert len(taken) == COLUMNS * (1 + max(y for _, y in taken))


def test_widgets_are_of_known_types_and_within_limits(widgets: list[Widget]) -> None:
    assert {widget["type"] for widget in widgets} == {"metric", "log", "text"}
    assert len(widgets) <= MOST_WIDGETS
    assert sum(len(list(metrics_of(widget))) for widget in widgets) <= MOST_METRICS
    assert len(as_json({"widgets": widgets}).encode()) <= MOST_BYTES
    titles = [widget["properties"].get("title") for widget in widgets if widget["type"] != "text"]
    assert all(titles)
    assert len(set(titles)) == len(titles)


def test_every_metric_is_declared_with_just_the_dimensions_that_it_is_published_with(
    widgets: list[Widget],
) -> None:
    declared: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for metric in own.METRICS:
        declared[NAMESPACE, metric.name] = {
            ("Environment",),
            *(("Environment", name) for name in metric.dimensions),
        }
    for published in aws.AWS_METRICS:
        ways = declared.setdefault((published.namespace, published.name), set())
        ways.add(tuple(published.dimensions))
    values = {"FailureClass": set(FailureClass), "Sensor": set(SENSORS), "Environment": {"local"}}
    drawn = 0
    for widget in widgets:
        for path, options in metrics_of(widget):
            if not path:
                continue
            namespace, name, *dimensions = path
            names, said = tuple(dimensions[::2]), dimensions[1::2]
            assert names in declared[namespace, name], path
            for dimension, value in zip(names, said, strict=True):
                assert value
                assert value in values.get(dimension, {value})
            assert options["stat"] in get_args(Statistic)
            assert options["stat"] == "Sum" or _is_no_counter(namespace, name), path
            drawn += 1
    assert drawn


def _is_no_counter(namespace: str, name: str) -> bool:
    return namespace != NAMESPACE or next(m for m in own.METRICS if m.name == name).kind != "counter"


def test_expressions_read_only_series_of_their_widget_and_are_well_formed(widgets: list[Widget]) -> None:
    met = 0
    for widget in widgets:
        ids = [options["id"] for _, options in metrics_of(widget)]
        assert len(set(ids)) == len(ids), widget
        assert all(re.fullmatch(r"[a-z][A-Za-z0-9_]*", each) for each in ids), ids
        read: set[str] = set()
        for path, options in metrics_of(widget):
            if path:
                continue
            met += 1
            expression = options["expression"]
            assert options["label"]
            assert expression.count("(") == expression.count(")")
            assert re.fullmatch(r"[\w\s+\-*/(),<>=.]+", expression), expression
            words = set(re.findall(r"[A-Za-z_]\w*", expression))
            called = set(re.findall(r"([A-Za-z_]\w*)\(", expression))
            assert called <= FUNCTIONS
            assert words - called <= set(ids), expression
            read |= words - called
        # What only feeds an expression is not drawn beside it.
        hidden = {options["id"] for _, options in metrics_of(widget) if options.get("visible") is False}
        assert hidden == read
    assert met


NOTHING = math.nan


@pytest.mark.parametrize(
    ("title", "unit", "series", "drawn"),
    [
        # One run of twenty, none at all, and a quarter of an hour in which only failures were published.
        (
            "Error rate of runs",
            "%",
            {"failed": [1, 0, NOTHING, 3], "succeeded": [19, 4, NOTHING, NOTHING]},
            {"error_rate": [5, 0, 0, 100]},
        ),
        # The lines are in milliseconds; the load balancer measures seconds.
        (
            "Web server: response time",
            "ms",
            {"p50": [0.2], "p95": [1.0]},
            {"p50_ms": [200], "p95_ms": [1000]},
        ),
        # 8 GiB of the 80 that the deployment says there are.
        ("Database: free storage", "%", {"free": [8 * 2**30]}, {"free_percent": [10]}),
        (
            "GPU seconds and their cost",
            None,
            {"gpu": [1800], "cost": [NOTHING]},
            {"hours": [0.5], "dollars": [0]},
        ),
    ],
)
def test_expressions_draw_what_their_lines_are_about(
    title: str, unit: str | None, series: dict[str, list[float]], drawn: dict[str, list[float]]
) -> None:
    widget = filled(graph(title), {**NAMES, "database_storage_gib": "80"})
    values = {name: np.array(each, dtype=float) for name, each in series.items()}

    evaluated = {
        options["id"]: MetricMath().evaluate(options["expression"], values).tolist()
        for path, options in metrics_of(widget)
        if not path
    }

    assert evaluated == {name: pytest.approx(each) for name, each in drawn.items()}
    assert widget["properties"]["yAxis"]["left"].get("label") == unit


def test_recent_errors_are_a_query_of_groups_that_exist(widgets: list[Widget]) -> None:
    [table] = [widget for widget in widgets if widget["type"] == "log"]
    sources, query = re.fullmatch(
        r"((?:SOURCE '[^']+' \| )+)(.*)", table["properties"]["query"], re.DOTALL
    ).groups()  # type: ignore[union-attr]

    assert set(re.findall(r"SOURCE '([^']+)'", sources)) == {group.name for group in LOG_GROUPS}
    assert insights.fields_read(insights.parse(query)) >= {"level", "message", "failure_class"}


def test_every_sensor_of_the_code_location_is_watched() -> None:
    assert {sensor.name for sensor in defs.sensors or ()} == set(SENSORS)
