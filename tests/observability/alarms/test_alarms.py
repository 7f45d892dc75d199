"""Every alarm of the list: it rings for its fault, is told of once, and is silent on a day without one."""

import numpy as np
import pytest

from capstone_dagster.observability.catalog.alarms import ALARMS
from capstone_dagster.observability.catalog.composites import notifier
from tests.observability.alarms.cloudwatch import Outcome, Reading, simulate
from tests.observability.alarms.faults import FAULTS, Fault
from tests.observability.alarms.traffic import DAY, clean

# Half a day from eight in the morning; the fault comes at noon.
HALF_A_DAY, MORNING, BEGINS = DAY // 2, 8, 240
# No alarm looks back farther than three windows of an hour.
KNOWN_FROM = 180


def lags(seed: int) -> dict[str, int]:
    """Each alarm is evaluated at a second of its own: some are known a minute later than others."""
    draw = np.random.default_rng(seed)
    return {each.name: int(draw.integers(0, 2)) for each in ALARMS}


READINGS = {
    "as documented": Reading(),
    "no points beyond the periods": Reading(extra_points=0, lags=lags(1)),
    "more points": Reading(extra_points=5, lags=lags(2)),
    "FILL leaves empty series empty": Reading(fills_empty=False, lags=lags(3)),
    "values come a minute late": Reading(delay=1, lags=lags(4)),
    "values come two minutes late": Reading(delay=2, lags=lags(5)),
}


def run(fault: Fault, reading: Reading, seed: int = 7) -> Outcome:
    world = clean(seed, HALF_A_DAY, MORNING)
    fault.apply(world, slice(BEGINS, BEGINS + fault.minutes))
    return simulate(ALARMS, world, reading)


@pytest.fixture(params=READINGS.values(), ids=READINGS.keys())
def reading(request: pytest.FixtureRequest) -> Reading:
    return request.param


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_alarms_are_silent_on_a_clean_day(reading, seed):
    outcome = simulate(ALARMS, clean(seed), reading)

    assert [name for name, rings in outcome.ringing.items() if rings[KNOWN_FROM:].any()] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_alarm_rings_for_its_fault_is_told_of_once_and_falls_silent(fault, reading):
    outcome = run(fault, reading)
    ends = BEGINS + fault.minutes

    for alarm in fault.rings:
        rings = np.flatnonzero(outcome.ringing[alarm.name][KNOWN_FROM:]) + KNOWN_FROM
        period = alarm.period_s // 60
        # Evaluated at the end of a minute: the first that can know of the fault is the one it begins in.
        latest = BEGINS + fault.sets_in_after + 2 * period - 1 + reading.delay
        assert len(rings), f"{alarm.name} never rang"
        assert BEGINS <= rings[0] <= latest, f"{alarm.name} rang in minute {rings[0] - BEGINS} of the fault"
    told = [notice for notice in outcome.notices if notice.minute >= KNOWN_FROM]
    assert [notice.alarm for notice in told] == [fault.told_by]
    still = [name for name, rings in outcome.ringing.items() if rings[ends + 60 :].any()]
    assert still == []


def test_alarms_each_have_a_fault_by_which_they_ring():
    faulty = {alarm.name for fault in FAULTS for alarm in fault.rings}

    assert [alarm.name for alarm in ALARMS if alarm.name not in faulty] == []


def test_alarm_notices_each_have_a_fault_that_they_tell_of():
    told = {fault.told_by for fault in FAULTS}

    assert {notifier(alarm) for alarm in ALARMS} == told
