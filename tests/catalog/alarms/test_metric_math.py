"""Metric math as the user guide has it, example by example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.catalog.alarms.metric_math import MetricMath, NotUnderstood

_ = np.nan
# The guide's tables: two pairs of series, then what it says of them.
COMPARED = {"metric1": [30, 20, 0, 0], "metric2": [20, _, 20, _]}
CHOSEN = {"metric1": [1, 1, 0, 0, _], "metric2": [30, _, 0, 0, 30], "metric3": [0, 0, 20, _, 20]}


@pytest.mark.parametrize(
    ("expression", "series", "expected"),
    [
        ("metric1 < metric2", COMPARED, [0, 0, 1, 0]),
        ("metric1 >= 30", COMPARED, [1, 0, 0, 0]),
        ("metric1 > 15 AND metric2 > 15", COMPARED, [1, 0, 0, 0]),
        ("IF(metric1, metric2, metric3)", CHOSEN, [30, 0, 20, _, _]),
        ("IF(metric1, 5, metric3)", CHOSEN, [5, 5, 20, _, _]),
        ("IF(metric1, metric2, 5)", CHOSEN, [30, 0, 5, 5, _]),
        ("IF(metric1 > 10, 10, 2)", COMPARED, [10, 10, 2, 2]),
        ("IF(metric1 > 10, metric1)", COMPARED, [30, 20, _, _]),
    ],
)
def test_alarm_math_agrees_with_the_tables_of_the_user_guide(expression, series, expected):
    arrays = {name: np.array(values, dtype=float) for name, values in series.items()}

    np.testing.assert_array_equal(MetricMath().evaluate(expression, arrays), expected)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # "Missing values in a time series are treated as 0", those that the other series has a time for.
        ("a + b", [3, 1, 2, _]),
        ("a - b", [-1, 1, -2, _]),
        ("a * 10", [10, 10, _, _]),
        ("-a", [-1, -1, _, _]),
        # "If the value of a data point causes a function to attempt to divide by zero, it is dropped."
        ("a / b", [0.5, _, 0, _]),
        ("FILL(a, 7)", [1, 1, 7, 7]),
        ("FILL(a, b)", [1, 1, 2, _]),
        ("SUM([a, b])", [3, 1, 2, _]),
        ("MAX([a, b])", [2, 1, 2, _]),
        ("MIN([a, b])", [1, 1, 2, _]),
        ("AVG([a, b])", [1.5, 0.5, 1, _]),
        ("2 + 3 * FILL(a, 0) ^ 2", [5, 5, 2, 2]),
        ("(2 + 3) * FILL(a, 0)", [5, 5, 0, 0]),
        ("FILL(a, 0) == 1 && FILL(b, 0) != 2", [0, 1, 0, 0]),
        ("FILL(a, 0) < 1 || FILL(b, 0) <= 0", [0, 1, 1, 1]),
        ("100*FILL(b,0)/4", [50, 0, 50, 0]),
    ],
)
def test_alarm_math_of_missing_values(expression, expected):
    series = {"a": np.array([1.0, 1, _, _]), "b": np.array([2.0, _, 2, _])}

    np.testing.assert_array_equal(MetricMath().evaluate(expression, series), expected)


@pytest.mark.parametrize(("fills_empty", "expected"), [(True, [[0, 0], [0, 1]]), (False, [[_, _], [0, 1]])])
def test_alarm_math_fills_a_series_without_any_value_as_it_is_told_to(fills_empty, expected):
    series = {"a": np.array([[_, _], [_, 1.0]])}

    np.testing.assert_array_equal(MetricMath(fills_empty).evaluate("FILL(a, 0)", series), expected)


@pytest.mark.parametrize(
    "expression",
    ["MAX(a)", "5", "a +", "b", "RATE(a)", "a a", "IF(1, a)", "FILL(1, 2)", "a ? 1", "(a", "FILL(a)"],
)
def test_alarm_math_refuses_what_it_does_not_know_and_what_alarms_should_not_use(expression):
    with pytest.raises(NotUnderstood):
        MetricMath().evaluate(expression, {"a": np.array([1.0])})


@given(
    st.lists(
        st.tuples(*[st.one_of(st.none(), st.integers(0, 50))] * 2).map(
            lambda pair: [np.nan if each is None else each for each in pair]
        ),
        min_size=1,
    )
)
def test_alarm_math_of_a_failure_rate_is_a_share_and_has_a_floor(pairs):
    failed, total = np.array(pairs, dtype=float).T
    rate = MetricMath().evaluate(
        "IF(FILL(total, 0) >= 10, 100 * FILL(failed, 0) / total, 0)",
        {"failed": np.minimum(failed, total), "total": total},
    )

    enough = np.nan_to_num(total) >= 10
    assert not rate[~enough].any()
    assert (rate[enough] == 100 * np.nan_to_num(np.minimum(failed, total))[enough] / total[enough]).all()
