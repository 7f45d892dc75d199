"""The simulator against the examples of CloudWatch's user guide."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.catalog.alarms import S3_ACCESS_DENIED
from capstone_dagster.catalog.model import MissingData
from tests.catalog.alarms.cloudwatch import (
    Notice,
    Reading,
    actions,
    data_points,
    evaluate,
    next_state,
    simulate,
)

_ = np.nan
# The guide's threshold is 3 units.
ALARM = replace(S3_ACCESS_DENIED, threshold=3, periods=3, datapoints=3)
TREATMENTS = tuple(MissingData(each, "") for each in ("missing", "ignore", "breaching", "notBreaching"))
INSUFFICIENT, RETAIN = "INSUFFICIENT_DATA", "retain"


def points(drawn: str) -> list[bool | None]:
    """The guide's drawing, "0 - X - X" with the newest on the right, newest first."""
    return [{"0": False, "X": True, "-": None}[each] for each in reversed(drawn.split())]


@pytest.mark.parametrize("before", ["OK", "ALARM"])
@pytest.mark.parametrize(
    ("datapoints", "drawn", "expected"),
    [
        # docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html, both tables.
        (3, "0 - X - X", ("OK", "OK", "OK", "OK")),
        (3, "0 - - - -", ("OK", "OK", "OK", "OK")),
        (3, "- - - - -", (INSUFFICIENT, RETAIN, "ALARM", "OK")),
        (3, "0 X X - X", ("ALARM", "ALARM", "ALARM", "ALARM")),
        (3, "- - X - -", ("ALARM", RETAIN, "ALARM", "OK")),
        (2, "0 - X - X", ("ALARM", "ALARM", "ALARM", "ALARM")),
        (2, "0 0 X 0 X", ("ALARM", "ALARM", "ALARM", "ALARM")),
        (2, "0 - X - -", ("OK", "OK", "ALARM", "OK")),
        (2, "- - - - 0", ("OK", "OK", "ALARM", "OK")),
        (2, "- - - X -", ("ALARM", RETAIN, "ALARM", "OK")),
        # Row 5 of both tables in the guide's edition of 2018, which the text of today still has in words.
        (3, "- - - - X", (INSUFFICIENT, RETAIN, "ALARM", "OK")),
        (2, "- - - - X", (INSUFFICIENT, RETAIN, "ALARM", "OK")),
        # "The data is either - - - - X or - - - X - and Datapoints to Alarm is 3": not at once.
        (3, "- - - X -", (INSUFFICIENT, RETAIN, "ALARM", "OK")),
    ],
)
def test_alarm_states_agree_with_the_tables_of_the_user_guide(datapoints, drawn, expected, before):
    found = tuple(
        next_state(replace(ALARM, datapoints=datapoints, missing=each), points(drawn), before)
        for each in TREATMENTS
    )

    assert found == tuple(before if each == RETAIN else each for each in expected)


def test_alarm_of_three_periods_rings_as_in_the_figure_of_the_user_guide():
    # "In the figure, this happens in the third through fifth time periods. At period six the value dips below
    # the threshold ... During the ninth the threshold is breached again, but for only one period."
    values = np.array([2, 2, 4, 4, 5, 2, 1, 1, 5, 2], dtype=float)
    # Three breaching periods there are at the end of the fifth.
    assert evaluate(ALARM, [values])[2:] == ["OK", "OK", "ALARM", *["OK"] * 5]


def test_alarm_windows_slide_by_the_minute():
    # "At the end of minute 5 the alarm evaluates based on data from minutes 1 to 5. Then at the end of minute
    # 6, the alarm is evaluated based on the data from minutes 2 to 6."
    values = np.array([1, 2, 3, 4, 5, 6, 7], dtype=float)

    assert data_points(values, "Sum", minutes=5, points=1, delay=0)[4:, 0].tolist() == [15, 20, 25]
    assert data_points(values, "Average", minutes=3, points=2, delay=0)[6].tolist() == [6, 3]
    assert data_points(values, "Maximum", minutes=3, points=2, delay=1)[6].tolist() == [6, 4]
    assert data_points(values, "Minimum", minutes=3, points=2, delay=1)[6].tolist() == [5, 2]
    assert data_points(values, "SampleCount", minutes=3, points=2, delay=1)[6].tolist() == [2, 3]


def test_alarm_data_are_missing_where_a_window_has_none():
    values = np.array([1, _, _, _], dtype=float)

    np.testing.assert_array_equal(
        data_points(values, "Sum", minutes=2, points=2, delay=0), [[1, _], [1, _], [_, 1], [_, 1]]
    )
    np.testing.assert_array_equal(data_points(values, "Maximum", 1, 1, delay=2), [[_], [_], [_], [_]])


@given(
    st.lists(st.sampled_from([0.0, 1.0, 5.0, _]), min_size=1, max_size=30),
    st.sampled_from(["Sum", "Average", "Maximum", "Minimum", "SampleCount"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_alarm_data_points_are_the_statistic_of_their_minutes(values, statistic, minutes, count, delay):
    of = {"Sum": sum, "Average": lambda v: sum(v) / len(v), "Maximum": max, "Minimum": min}
    found = data_points(np.array(values), statistic, minutes, count, delay)

    for now in range(len(values)):
        for point in range(count):
            window = range(now + 1 - (point + 1) * minutes, now + 1 - point * minutes)
            seen = [values[m] for m in window if 0 <= m <= now - delay and not np.isnan(values[m])]
            expected = of[statistic](seen) if seen and statistic in of else len(seen) or _
            np.testing.assert_equal(found[now, point], expected)


@given(
    st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=8),
    st.sampled_from(["OK", "ALARM", INSUFFICIENT]),
)
def test_alarm_treatments_of_missing_data_differ_only_where_data_are_missing(n_and_m, data, before):
    periods, datapoints = n_and_m
    alarm = replace(ALARM, periods=periods, datapoints=datapoints)
    found = {each.treatment: next_state(replace(alarm, missing=each), data, before) for each in TREATMENTS}
    real = [each for each in data if each is not None]

    if len(real) >= periods:
        [only] = set(found.values())
        assert (only == "ALARM") == (sum(real[:periods]) >= datapoints)
    if found["notBreaching"] == "ALARM":  # data alone are enough, so no treatment takes it back
        assert set(found.values()) == {"ALARM"}
    if found["breaching"] == "OK":  # even at worst it is not enough
        assert "ALARM" not in {found["notBreaching"], found["missing"]}
    if not real:
        assert found == {
            "missing": INSUFFICIENT,
            "ignore": before,
            "breaching": "ALARM",
            "notBreaching": "OK",
        }


def rings(*spans: tuple[int, int]) -> np.ndarray:
    """In ALARM from each first to before each last unit of time."""
    found = np.zeros(14, dtype=bool)
    for first, last in spans:
        found[first:last] = True
    return found


@pytest.mark.parametrize(
    ("composite", "suppressor", "expected"),
    [
        # docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-suppression.html, examples 1 to 6, with
        # WaitPeriod 2 and ExtensionPeriod 3.
        pytest.param([(2, 14)], [], [(4, True)], id="1, not suppressed after WaitPeriod"),
        pytest.param([(2, 14)], [(3, 14)], [], id="2, suppressed before WaitPeriod expires"),
        pytest.param([(2, 3)], [], [(5, False)], id="3, state transition during WaitPeriod"),
        pytest.param([(2, 14)], [(1, 14)], [], id="4, suppressor was in ALARM already"),
        pytest.param([(2, 14)], [(3, 6)], [(9, True)], id="5, not suppressed after ExtensionPeriod"),
        pytest.param([(2, 7)], [(3, 6)], [(9, False)], id="6, state transition during ExtensionPeriod"),
    ],
)
def test_alarm_suppression_agrees_with_the_examples_of_the_user_guide(composite, suppressor, expected):
    assert actions(rings(*composite), rings(*suppressor), wait=2, extension=3) == expected


@given(
    st.lists(st.booleans(), min_size=2, max_size=40),
    st.data(),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_alarm_suppression_never_acts_while_the_suppressor_rings(composite, data, wait, extension):
    suppressor = data.draw(
        st.lists(st.booleans(), min_size=len(composite), max_size=len(composite)), label="suppressor"
    )
    taken = actions(np.array(composite), np.array(suppressor), wait, extension)

    assert not any(suppressor[minute] for minute, _on_alarm in taken)
    assert all(composite[minute] == on_alarm for minute, on_alarm in taken)
    changes = sum(before != after for before, after in pairwise(composite))
    assert len(taken) <= changes


def test_alarm_state_is_known_to_composites_as_late_as_it_is_said_to_be():
    alarm = replace(S3_ACCESS_DENIED, periods=1)
    values = np.array([0, 0, 9, 9, 9, 0], dtype=float)
    late = Reading(lags={alarm.name: 2})

    assert simulate([alarm], lambda series: values).notices == (Notice(2, "AccessDenied"),)
    assert simulate([alarm], lambda series: values, late).notices == (Notice(4, "AccessDenied"),)
