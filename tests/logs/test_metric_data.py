"""Metrics in lines become requests that PutMetricData takes: no value is lost on the way or counted twice."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.logs.shipping.metric_data import (
    MalformedMetrics,
    MetricRequest,
    embedded_metrics,
    values_of,
)

NOW_MS = 1_800_000_000_000


def emf(
    values: dict[str, Any], at_ms: int = NOW_MS, dimensions: list[list[str]] | None = None, **fields: Any
) -> dict[str, Any]:
    sets = [["Environment"]] if dimensions is None else dimensions
    metrics = [{"Name": name, "Unit": "Count"} for name in values]
    about = {"Namespace": "Capstone", "Dimensions": sets, "Metrics": metrics}
    return {
        "_aws": {"Timestamp": at_ms, "CloudWatchMetrics": [about]},
        "Environment": "local",
        **fields,
        **values,
    }


lines = st.lists(
    st.builds(
        emf,
        st.dictionaries(
            st.sampled_from(["A", "B", "C"]),
            st.one_of(st.integers(-5, 5), st.floats(-1e6, 1e6), st.lists(st.integers(0, 300), max_size=200)),
            min_size=1,
        ),
        st.integers(NOW_MS - 300_000, NOW_MS),
        st.sampled_from([[["Environment"]], [["Environment"], ["Environment", "Sensor"]], [[]]]),
        Sensor=st.sampled_from(["a", "b"]),
    ),
    max_size=60,
)


@given(lines)
def test_every_value_of_the_metrics_is_sent_once_within_the_limits(lines: list[dict[str, Any]]) -> None:
    sent: Counter[Any] = Counter()
    given_values: Counter[Any] = Counter()

    def send(request: MetricRequest) -> None:
        for namespace, data in request.requests():
            assert namespace == "Capstone"
            assert 0 < len(data) <= 1000
            for datum in data:
                assert 0 < len(datum["Values"]) == len(datum["Counts"]) <= 150
                assert len(set(datum["Values"])) == len(datum["Values"])
                key = (datum["MetricName"], str(datum["Dimensions"]), datum["Timestamp"])
                for value, count in zip(datum["Values"], datum["Counts"], strict=True):
                    sent[key, value] += count

    request = MetricRequest(10)
    for line in lines:
        values = values_of(line, NOW_MS)
        for series, value in values:
            dimensions = str([{"Name": name, "Value": each} for name, each in series.dimensions])
            given_values[series.name, dimensions, series.minute_ms, value] += 1
        if not request.add(values):
            assert request.lines > 0
            send(request)
            request = MetricRequest(10)
            assert request.add(values)
    send(request)
    told = Counter(
        {
            (name, dimensions, int(at.timestamp() * 1000), value): count
            for ((name, dimensions, at), value), count in sent.items()
        }
    )
    assert told == given_values


def test_many_values_of_metrics_are_several_data_and_requests() -> None:
    request = MetricRequest(10)
    assert request.add(values_of(emf({"A": list(range(400)), "B": [1] * 400}), NOW_MS))
    [(_, data)] = request.requests()
    assert [(datum["MetricName"], len(datum["Values"])) for datum in data] == [
        *(("A", 150), ("A", 150), ("A", 100)),
        ("B", 1),
    ]
    request = MetricRequest(10)
    assert request.add(values_of(emf({f"M{number}": 1 for number in range(1500)}), NOW_MS))
    assert [len(data) for _, data in request.requests()] == [1000, 500]


@pytest.mark.parametrize(
    "fields",
    [
        {"_aws": {}},
        {"_aws": {"Timestamp": "soon", "CloudWatchMetrics": []}},
        emf({"A": "many"}),
        emf({"A": float("nan")}),
        emf({"A": 2.0**400}),
        emf({"A": 1}, dimensions=[["Missing"]]),
        emf({"A": 1}, dimensions=[["Environment"]], Environment=""),
        emf({"A": 1}, dimensions=[[f"D{n}" for n in range(31)]], **{f"D{n}": "x" for n in range(31)}),
        emf({"A": 1}, at_ms=NOW_MS - 15 * 24 * 3600 * 1000),
        emf({"A": 1}, at_ms=NOW_MS + 3 * 3600 * 1000),
    ],
)
def test_metrics_that_would_spoil_a_request_are_refused_before(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedMetrics):
        values_of(fields, NOW_MS)


@pytest.mark.parametrize(
    "line",
    ["", "{", '{"_aws"', '{"_aws": 1}', '["_aws"]', '{"message": "of \\"_aws\\""}', "[" * 100_000 + '"_aws"'],
)
def test_a_line_without_metrics_is_a_line(line: str) -> None:
    assert embedded_metrics(line) is None


def test_a_line_with_metrics_is_known_by_them() -> None:
    assert embedded_metrics(json.dumps(emf({"A": 1}))) == emf({"A": 1})
