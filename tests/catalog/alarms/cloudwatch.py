"""What CloudWatch makes of metrics: when alarms ring, and which of them tell somebody.

Rules are those of the user guide (docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/): alarm-evaluation,
alarm-evaluation-window, alarms-and-missing-data, alarm-combining, alarm-suppression. What the guide leaves
open is an attribute of :class:`Reading`, so that alarms can be shown to work whichever is true.

Time is counted in minutes, which is how often CloudWatch evaluates alarms; a series is an array with one
value a minute, NaN where there is no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from capstone_dagster.catalog.composites import composites, notifier
from capstone_dagster.catalog.model import Alarm, Composite, Series
from tests.catalog.alarms.metric_math import MetricMath, Values

State = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]

_COMPARISONS: Mapping[str, Callable[[Values, float], NDArray[np.bool_]]] = {
    "GreaterThanThreshold": np.greater,
    "GreaterThanOrEqualToThreshold": np.greater_equal,
    "LessThanThreshold": np.less,
    "LessThanOrEqualToThreshold": np.less_equal,
}


@dataclass(frozen=True)
class Reading:
    """One way to read what the guide leaves open, and one way in which minutes fall.

    Attributes:
        extra_points: how many data points more than the alarm's periods are retrieved, at least 1. The
            guide's examples have 2; "the exact number depends on the length of the alarm period".
        fills_empty: as in :class:`MetricMath`.
        delay: minutes that a value takes until alarms see it.
        lags: minutes by which an alarm's state is known later to composites, by its name: CloudWatch
            evaluates each alarm at a second of its own.
    """

    extra_points: int = 2
    fills_empty: bool = True
    delay: int = 0
    lags: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Notice:
    """Somebody is told that an alarm rings."""

    minute: int
    alarm: str


@dataclass(frozen=True)
class Outcome:
    """What came of a simulation.

    Attributes:
        ringing: name of an alarm or composite → whether it is in ALARM, minute by minute.
    """

    ringing: Mapping[str, NDArray[np.bool_]]
    notices: tuple[Notice, ...]


def simulate(
    alarms: Sequence[Alarm], series: Callable[[Series], Values], reading: Reading = Reading()
) -> Outcome:
    """Evaluates alarms every minute, and the composites that the list makes of them.

    Args:
        series: gives the values of one; all have the same length.
    """
    ringing = {
        alarm.name: _rings(alarm, [series(each) for each in alarm.series], reading) for alarm in alarms
    }
    known = {name: _later(rings, reading.lags.get(name, 0)) for name, rings in ringing.items()}
    notices = [
        Notice(minute, alarm.name)
        for alarm in alarms
        if notifier(alarm) == alarm.name
        for minute in _beginnings(ringing[alarm.name])
    ]
    for composite in composites(alarms):
        rings = np.logical_or.reduce([known[each] for each in composite.any_of])
        ringing[composite.name] = known[composite.name] = rings
        notices += [Notice(minute, composite.name) for minute in _told(composite, rings, known)]
    return Outcome(ringing, tuple(sorted(notices, key=lambda each: (each.minute, each.alarm))))


def evaluate(alarm: Alarm, series: Sequence[Values], reading: Reading = Reading()) -> list[State]:
    """The alarm's state at the end of each minute."""
    minutes = alarm.period_s // 60
    points = alarm.periods + reading.extra_points
    by_id = {
        each.id: data_points(values, each.statistic, minutes, points, reading.delay)
        for each, values in zip(alarm.series, series, strict=True)
    }
    if alarm.expression is None:
        [values] = by_id.values()
    else:
        values = MetricMath(reading.fills_empty).evaluate(alarm.expression, by_id)
    breaching = _COMPARISONS[alarm.comparison](values, alarm.threshold)
    known = ~np.isnan(values)
    states: list[State] = []
    state: State = "INSUFFICIENT_DATA"
    followed: dict[object, State] = {}  # the same few patterns come again and again
    for pattern in zip(known.tolist(), breaching.tolist(), strict=True):
        remembered = (str(pattern), state)
        if remembered not in followed:
            points_now = [bad if there else None for there, bad in zip(*pattern, strict=True)]
            followed[remembered] = next_state(alarm, points_now, state)
        state = followed[remembered]
        states.append(state)
    return states


def data_points(values: Values, statistic: str, minutes: int, points: int, delay: int) -> Values:
    """What an evaluation at the end of each minute retrieves, the newest first: shape (minutes, points).

    Windows slide: "If the Period is 5 minutes, at the end of minute 6 the alarm is evaluated based on the
    data from minutes 2 to 6."
    """
    columns = [
        _statistic(values, statistic, (point + 1) * minutes, max(point * minutes, delay))
        for point in range(points)
    ]
    return np.stack(columns, axis=1)


def next_state(alarm: Alarm, newest_first: Sequence[bool | None], state: State) -> State:
    """The state that follows from data points: breaching, not breaching, or missing.

    The rules and tables of "How alarm state is evaluated when data is missing".
    """
    real = [point for point in newest_first if point is not None]
    if len(real) >= alarm.periods:
        return "ALARM" if sum(real[: alarm.periods]) >= alarm.datapoints else "OK"
    filled = alarm.periods - len(real)
    bad = sum(real)
    if alarm.missing.treatment == "breaching":
        return "ALARM" if bad + filled >= alarm.datapoints else "OK"
    if alarm.missing.treatment == "notBreaching":
        return "ALARM" if bad >= alarm.datapoints else "OK"
    if bad >= alarm.datapoints:
        return "ALARM"
    if bad < len(real):
        return "OK"
    if alarm.missing.treatment == "ignore":
        return state
    # "... when the oldest breaching data point is at least as old as the value of Datapoints to Alarm, and
    # all of the more recent data points are either breaching or missing".
    oldest = max((age for age, point in enumerate(newest_first, 1) if point is not None), default=0)
    return "ALARM" if oldest >= alarm.datapoints else "INSUFFICIENT_DATA"


def actions(
    rings: NDArray[np.bool_], suppressor: NDArray[np.bool_], wait: int, extension: int
) -> list[tuple[int, bool]]:
    """When a composite with a suppressor acts, and whether on ALARM: the six examples of "Alarm suppression".

    The guide does not say what an extension that ends without a change of state in it does; here nothing.
    """
    taken: list[tuple[int, bool]] = []
    pending = False  # a change of state for which no action was taken yet
    until = 0  # the end of the period, of either kind, that keeps an action back
    for minute in range(1, len(rings)):
        if rings[minute] != rings[minute - 1]:
            pending, until = True, minute + wait
        if suppressor[minute - 1] and not suppressor[minute] and rings[minute] == rings[minute - 1]:
            until = minute + extension
        if pending and not suppressor[minute] and minute >= until:
            taken.append((minute, bool(rings[minute])))
            pending = False
    return taken


# Most alarms see the same numbers in each of many simulations.
_KNOWN: dict[tuple[object, ...], NDArray[np.bool_]] = {}


def _rings(alarm: Alarm, series: Sequence[Values], reading: Reading) -> NDArray[np.bool_]:
    seen = (repr(alarm), repr(replace(reading, lags={})), *(each.tobytes() for each in series))
    if seen not in _KNOWN:
        _KNOWN[seen] = np.array([each == "ALARM" for each in evaluate(alarm, series, reading)])
    return _KNOWN[seen]


def _told(
    composite: Composite, rings: NDArray[np.bool_], known: Mapping[str, NDArray[np.bool_]]
) -> list[int]:
    if not composite.notifies:
        return []
    if composite.suppressor is None:
        return _beginnings(rings)
    # A part of a minute is as long as a whole one, where only whole ones are counted.
    wait, extension = -(-composite.wait_s // 60), -(-composite.extension_s // 60)
    taken = actions(rings, known[composite.suppressor], wait, extension)
    return [minute for minute, on_alarm in taken if on_alarm]


def _statistic(values: Values, statistic: str, first: int, last: int) -> Values:
    """Of the minutes from `first` to `last` before the end of each minute; NaN where there are no data."""
    length = first - last
    if length <= 0:
        return np.full(len(values), np.nan)
    # Before the beginning there were no data; the window that ends with minute m starts at m + 1 - first.
    earlier = np.concatenate([np.full(first - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(earlier, length)[: len(values)]
    there = ~np.isnan(windows)
    count = there.sum(axis=1)
    if statistic == "SampleCount":
        found = count
    elif statistic in ("Sum", "Average"):
        found = np.nansum(windows, axis=1) / (np.maximum(count, 1) if statistic == "Average" else 1)
    elif statistic == "Maximum":
        found = np.where(there, windows, -np.inf).max(axis=1)
    elif statistic == "Minimum":
        found = np.where(there, windows, np.inf).min(axis=1)
    else:
        raise NotImplementedError(f"{statistic}: percentiles need more than one value a minute")
    return np.where(count > 0, found, np.nan)


def _beginnings(rings: NDArray[np.bool_]) -> list[int]:
    return [int(minute) for minute in np.flatnonzero(rings & ~np.concatenate([[False], rings[:-1]]))]


def _later(rings: NDArray[np.bool_], minutes: int) -> NDArray[np.bool_]:
    return np.concatenate([np.zeros(minutes, dtype=bool), rings[: len(rings) - minutes]])
