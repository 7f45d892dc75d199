"""A day of the system's metrics in which nothing is wrong, and much happens."""

from __future__ import annotations

from typing import Any

import numpy as np

from capstone_dagster.catalog import aws_metrics as aws
from capstone_dagster.catalog import metrics as own
from capstone_dagster.catalog.alarms import DAEMON, WEBSERVER
from capstone_dagster.catalog.model import AwsMetric, Metric, Series
from tests.catalog.alarms.metric_math import Values

DAY = 24 * 60
GIB = 1024**3
# Of the runs that end, so many fail for reasons of their own: a broken file, a lost machine.
FAILING = 0.01


class World:
    """Metrics as CloudWatch has them: one value a minute, NaN where none was published."""

    def __init__(self, minutes: int) -> None:
        self.minutes = minutes
        self._parts: dict[tuple[Any, ...], Values] = {}
        self._totals: dict[tuple[Any, ...], Values] = {}

    def __call__(self, series: Series) -> Values:
        """The values of a series that an alarm reads.

        Raises:
            KeyError: nobody publishes it here, so that the alarm would be tested with nothing.
        """
        return self[series.metric, dict(series.dimensions)]

    def __getitem__(self, name: tuple[Metric | AwsMetric, dict[str, str]]) -> Values:
        metric, dimensions = name
        if _key(metric, {}) not in self._totals:
            raise KeyError(f"{metric.name} is published by nobody in this world")
        if not dimensions:
            return self._totals[_key(metric, {})]
        # A value of the dimension that did not come up yet has no data.
        return self._parts.get(_key(metric, dimensions), np.full(self.minutes, np.nan))

    def copy(self) -> World:
        """Another world, in which something may go wrong."""
        other = World(self.minutes)
        other._parts = {key: values.copy() for key, values in self._parts.items()}
        other._totals = {key: values.copy() for key, values in self._totals.items()}
        return other

    def publish(self, metric: Metric | AwsMetric, values: Values, **dimensions: str) -> None:
        """A metric, and its total over its dimensions: the sum of counters, the most of gauges.

        What is published without dimensions is a part of the total, as the others are.
        """
        self._parts[_key(metric, dimensions)] = np.asarray(values, dtype=float)
        parts = [
            each for key, each in self._parts.items() if key[: len(_key(metric, {}))] == _key(metric, {})
        ]
        together = np.sum if isinstance(metric, Metric) and metric.kind == "counter" else np.max
        there = ~np.isnan(parts).all(axis=0)
        self._totals[_key(metric, {})] = np.where(there, together(np.nan_to_num(parts), axis=0), np.nan)

    def change(self, metric: Metric | AwsMetric, during: slice, values: Any, **dimensions: str) -> None:
        """Other values for some minutes; NaN is silence."""
        changed = self._parts.get(_key(metric, dimensions), np.full(self.minutes, np.nan)).copy()
        changed[during] = values
        self.publish(metric, changed, **dimensions)

    def silence(self, *metrics: Metric | AwsMetric, during: slice) -> None:
        """No data at all for some minutes, whatever the dimensions."""
        for each in metrics:
            for key, values in (*self._parts.items(), *self._totals.items()):
                if key[: len(_key(each, {}))] == _key(each, {}):
                    values[during] = np.nan


def _key(metric: Metric | AwsMetric, dimensions: dict[str, str]) -> tuple[Any, ...]:
    if isinstance(metric, AwsMetric):
        return (metric.name, metric.namespace, *sorted(metric.dimensions.items()))
    return (metric.name, *sorted(dimensions.items()))


def clean(seed: int, minutes: int = DAY, first_hour: int = 0) -> World:
    """Metrics of a system in which nothing needs anybody: bursts, quiet nights, single failures, restarts.

    Uploads come at 1.5 a minute by day, now and then at night, and in bursts of hundreds, which the machines
    need up to forty minutes for.
    """
    world = World(minutes)
    draw = np.random.default_rng(seed)
    hours = (first_hour + np.arange(minutes) / 60) % 24
    night = (hours < 6) | (hours >= 22)

    arriving = draw.poisson(np.where(night, 0.05, 1.5))
    for start in range(int(draw.integers(0, 180)), minutes - 5, 240):
        arriving[start : start + 5] += draw.poisson(30, 5)
    ended, waiting = _served(arriving, draw.poisson(4.5, minutes))
    failed = draw.binomial(ended, FAILING)
    # At night the sensor that counts may be slow, and a minute then has no data.
    unseen = night & (draw.random(minutes) < 0.3)
    world.publish(own.RUNS_SUCCEEDED, np.where(unseen, np.nan, ended - failed))
    classes = draw.integers(0, 3, minutes)
    for index, failure_class in enumerate(("undecodable-video", "worker-lost", "timeout")):
        world.publish(
            own.RUNS_FAILED,
            np.where(unseen, np.nan, np.where(classes == index, failed, 0)),
            FailureClass=failure_class,
        )
    world.publish(own.REEXECUTIONS_REFUSED, np.full(minutes, np.nan))

    busy = waiting > 0
    world.publish(aws.QUEUE_OLDEST, np.where(busy | ~night, waiting / 4.5 * 60 + 30 * busy, np.nan))
    world.publish(own.SECONDS_WITHOUT_SUCCESS, _since(ended > 0, busy))
    age = np.clip(0.3 + 0.1 * np.cumsum(draw.normal(0, 0.3, minutes)) % 0.65, 0, 0.95)
    age[draw.integers(0, minutes)] = 1.02  # a run that ends just after its limit
    world.publish(own.LONGEST_RUN_OVER_LIMIT, np.where(busy | (age > 1), age, 0))
    world.publish(own.INTAKE_PAUSED, np.zeros(minutes))
    world.publish(own.DEAD_LETTERS, np.where(draw.random(minutes) < 0.05, np.nan, 0))
    world.publish(own.DUPLICATE_JOBS, np.where(night, np.nan, 0))
    world.publish(own.CPU_FALLBACKS, np.where(ended > 0, 0, np.nan))

    # Single refusals: a connection that broke, an object without permission, a throttled topic.
    world.publish(own.DATABASE_CONNECTION_FAILURES, _now_and_then(draw, minutes, 1 / 240, 2))
    world.publish(own.S3_ACCESS_DENIED, _now_and_then(draw, minutes, 1 / 120, 3))
    world.publish(own.NOTICES_FAILED, _now_and_then(draw, minutes, 1 / 480, 2))
    # A throttled minute: some ticks send nothing, and what waits grows a little older.
    throttled = _now_and_then(draw, minutes, 1 / 240, 9)
    world.publish(own.OUTBOX_REFUSED, np.nan_to_num(throttled))
    world.publish(own.OUTBOX_AGE, np.where(throttled > 0, 60, 0))
    world.publish(own.TELEMETRY_DROPPED, np.full(minutes, np.nan))
    errors = _now_and_then(draw, minutes, 1 / 180, 1)
    errors[draw.integers(0, minutes)] = 8  # a hiccup of Dagster's storage fails a tick of every sensor
    world.publish(own.SENSOR_TICK_ERRORS, errors, Sensor="upload_sensor")

    world.publish(own.HEARTBEAT, np.where(draw.random(minutes) < 0.01, np.nan, 2), Service=WEBSERVER)
    beats = np.where(draw.random(minutes) < 0.01, np.nan, 1)
    restart = draw.integers(0, minutes)
    beats[restart : restart + 2] = np.nan
    world.publish(own.HEARTBEAT, beats, Service=DAEMON)
    world.publish(aws.DAEMON_CPU, _load(draw, minutes, 25, 98))
    world.publish(aws.DAEMON_MEMORY, _load(draw, minutes, 55, 97))
    world.publish(aws.WEBSERVER_CPU, _load(draw, minutes, 12, 98))
    world.publish(aws.WEBSERVER_MEMORY, _load(draw, minutes, 45, 97))
    world.publish(aws.DATABASE_CPU, _load(draw, minutes, 18, 98))
    connections = draw.normal(35, 6, minutes) + 8 * busy
    connections[draw.integers(0, minutes)] = 95  # a moment in which many runs begin
    world.publish(aws.DATABASE_CONNECTIONS, connections)
    world.publish(aws.DATABASE_FREE_STORAGE, 30 * GIB - np.arange(minutes) * GIB / DAY)
    world.publish(aws.LOAD_BALANCER_5XX, _now_and_then(draw, minutes, 1 / 120, 3))
    world.publish(aws.TARGET_5XX, _now_and_then(draw, minutes, 1 / 240, 4))
    return world


def _served(arriving: Values, capacity: Values) -> tuple[Values, Values]:
    """Runs that end, and uploads that wait for theirs, minute by minute."""
    ended, waiting = np.zeros(len(arriving), dtype=int), np.zeros(len(arriving), dtype=int)
    backlog = 0
    for minute, (came, able) in enumerate(zip(arriving, capacity, strict=True)):
        ended[minute] = min(backlog, able)
        backlog += came - ended[minute]
        waiting[minute] = backlog
    return ended, waiting


def _since(successes: Values, busy: Values) -> Values:
    """Seconds since a success, while there is something to do."""
    found, seconds = np.zeros(len(busy)), 0
    for minute, (success, doing) in enumerate(zip(successes, busy, strict=True)):
        seconds = 0 if success or not doing else seconds + 60
        found[minute] = seconds
    return found


def _now_and_then(draw: np.random.Generator, minutes: int, chance: float, most: int) -> Values:
    """A few errors in a few minutes, no data in all others; the few do not come in one heap."""
    found = np.full(minutes, np.nan)
    minute = 0
    while (minute := minute + 6 + int(draw.exponential(1 / chance))) < minutes:
        found[minute] = draw.integers(1, most + 1)
    return found


def _load(draw: np.random.Generator, minutes: int, usual: float, peak: float) -> Values:
    """A level with noise, and peaks of up to four minutes with a quarter of an hour between them."""
    found = np.clip(draw.normal(usual, 4, minutes), 0, 100)
    start = 0
    while (start := start + 20 + int(draw.exponential(60))) < minutes:
        found[start : start + draw.integers(1, 5)] = peak
    return found
