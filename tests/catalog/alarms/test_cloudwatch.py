"""The simulator against the examples of CloudWatch's user guide."""

from dataclasses import replace

import numpy as np
import pytest

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


def test_alarm_state_is_known_to_composites_as_late_as_it_is_said_to_be():
    alarm = replace(S3_ACCESS_DENIED, periods=1)
    values = np.array([0, 0, 9, 9, 9, 0], dtype=float)
    late = Reading(lags={alarm.name: 2})

    assert simulate([alarm], lambda series: values).notices == (Notice(2, "AccessDenied"),)
    assert simulate([alarm], lambda series: values, late).notices == (Notice(4, "AccessDenied"),)
