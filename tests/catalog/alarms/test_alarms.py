"""Every alarm of the list: it rings for its fault, is told of once, and is silent on a day without one."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstone_dagster.catalog import alarms, composites
from capstone_dagster.catalog import aws_metrics as aws
from capstone_dagster.catalog import metrics as own
from capstone_dagster.catalog.alarms import ALARMS, ANOMALY_ALARMS
from capstone_dagster.catalog.composites import notifier
from capstone_dagster.catalog.model import Alarm
from tests.catalog.alarms import faults
from tests.catalog.alarms.cloudwatch import Outcome, Reading, simulate
from tests.catalog.alarms.faults import FAULTS
from tests.catalog.alarms.metric_math import MetricMath
from tests.catalog.alarms.traffic import DAY, GIB, World, clean

# Half a day from eight in the morning; the fault comes at noon.
BEGINS = 240
NOTHING_WRONG = clean(seed=7, minutes=DAY // 2, first_hour=8)
# No alarm looks back farther than three windows of an hour.
KNOWN_FROM = 180


def lags(seed: int) -> dict[str, int]:
    """Each alarm is evaluated at a second of its own: some are known a minute later than others."""
    draw = np.random.default_rng(seed)
    return {each.name: int(draw.integers(0, 2)) for each in ALARMS}


READINGS = {
    "as documented": Reading(),
    "fewer points, a minute late": Reading(extra_points=1, delay=1, lags=lags(1)),
    "more points, empty series stay empty": Reading(extra_points=5, fills_empty=False, lags=lags(2)),
    "two minutes late": Reading(delay=2, lags=lags(3)),
}


@pytest.fixture(params=READINGS.values(), ids=READINGS.keys())
def reading(request: pytest.FixtureRequest) -> Reading:
    return request.param


def run(fault: Callable[[World, slice], None], during: slice, reading: Reading = Reading()) -> Outcome:
    world = NOTHING_WRONG.copy()
    fault(world, during)
    return simulate(ALARMS, world, reading)


def notified(outcome: Outcome) -> list[str]:
    return [notice.alarm for notice in outcome.notices if notice.minute >= KNOWN_FROM]


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_alarms_are_silent_on_a_clean_day(reading, seed):
    outcome = simulate(ALARMS, clean(seed), reading)

    assert [name for name, rings in outcome.ringing.items() if rings[KNOWN_FROM:].any()] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_alarm_rings_for_its_fault_is_told_of_once_and_falls_silent(fault, reading):
    ends = BEGINS + fault.minutes
    outcome = run(fault.apply, slice(BEGINS, ends), reading)

    for alarm in fault.rings:
        [first, *_rest] = [*np.flatnonzero(outcome.ringing[alarm.name][KNOWN_FROM:]) + KNOWN_FROM, -1]
        assert first > 0, f"{alarm.name} never rang"
        # Evaluated at the end of a minute: the first that can know of the fault is the one it begins in.
        latest = BEGINS + fault.sets_in_after + 2 * alarm.period_s // 60 - 1 + reading.delay
        assert BEGINS <= first <= latest, f"{alarm.name} rang {first - BEGINS} minutes after the fault began"
    assert notified(outcome) == [fault.told_by]
    # None looks back farther than an hour, and a backlog takes half of one.
    assert [name for name, rings in outcome.ringing.items() if rings[ends + 90 :].any()] == []


@pytest.mark.parametrize(
    "fault", [each for each in FAULTS if each.minutes > 40], ids=lambda fault: fault.name
)
def test_alarms_tell_once_of_one_cause_in_whatever_order_they_see_it(fault):
    # A short one is over before its effects are; of what takes long to be a fault there are no short ones.
    lengths = [fault.minutes] if fault.sets_in_after else [12, 25, fault.minutes]

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(
        st.integers(220, 300),  # after the clean day's own hiccup of the sensors
        st.sampled_from(lengths),
        st.integers(0, 10**6),
        st.sampled_from(list(READINGS.values())),
    )
    def tells_once(begins: int, minutes: int, order: int, reading: Reading) -> None:
        evaluated = replace(reading, lags=lags(order))
        assert notified(run(fault.apply, slice(begins, begins + minutes), evaluated)) == [fault.told_by]

    tells_once()


def test_alarms_each_have_a_fault_by_which_they_ring():
    faulty = {alarm.name for fault in FAULTS for alarm in fault.rings}

    assert [alarm.name for alarm in ALARMS if alarm.name not in faulty] == []


def test_alarm_notices_each_have_a_fault_that_they_tell_of():
    assert {notifier(alarm) for alarm in ALARMS} == {fault.told_by for fault in FAULTS}


# --- missing data ---


def test_alarms_that_ring_when_all_is_silent_are_those_of_the_signs_of_life(reading):
    def everything_falls_silent(world: World, during: slice) -> None:
        world.silence(*(series.metric for alarm in ALARMS for series in alarm.series), during=during)

    outcome = run(everything_falls_silent, slice(BEGINS, BEGINS + 200), reading)

    rang = {each.name for each in ALARMS if outcome.ringing[each.name][KNOWN_FROM:].any()}
    assert rang == {"DatabaseSilent", "DaemonHeartbeatLost", "WebserverHeartbeatLost"}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("LongRunningJobs", 2),
        ("NoSuccess", 9000),
        ("DeadLettersPresent", 4),
        ("OutboxLate", 900),
        ("DatabaseStorageLow", GIB),
    ],
)
def test_alarm_of_a_gauge_goes_on_while_nothing_is_known(name, wrong, reading):
    [series] = next(each for each in ALARMS if each.name == name).series

    def is_wrong_then_silent(world: World, during: slice) -> None:
        world.change(series.metric, slice(during.start, during.start + 20), wrong)
        world.silence(series.metric, during=slice(during.start + 20, during.stop))

    rings = run(is_wrong_then_silent, slice(BEGINS, BEGINS + 200), reading).ringing[name]
    assert rings[BEGINS + 10 : BEGINS + 200].all()
    assert not rings[BEGINS + 210 :].any()


# --- what must not be kept quiet ---


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param(
            lambda world, during: (
                faults.access_denied(world, during),
                world.change(own.HEARTBEAT, during, np.nan, Service=alarms.WEBSERVER),
            ),
            {"AccessDenied", "WebserverHeartbeatLostUnexplained"},
            id="two causes at once",
        ),
        pytest.param(
            lambda world, during: (
                world.change(aws.DATABASE_FREE_STORAGE, slice(190, None), 1.5 * GIB),
                world.change(aws.DATABASE_CPU, slice(190, None), 95),
                faults.database_refuses(world, during),
            ),
            {"DatabaseStorageLow", "DatabaseCpuHigh", "DatabaseUnavailable"},
            id="an outage while something smaller rings",
        ),
        pytest.param(
            lambda world, during: (
                faults.access_denied(world, slice(during.start, during.start + 60)),
                faults.uploads_wait(world, during),
            ),
            {"AccessDenied", "UploadsStuck"},
            id="an effect that goes on without its cause",
        ),
        pytest.param(
            lambda world, during: (
                faults.runs_fail(world, during, "internal", share=0.6),
                faults.duplicate_job(world, slice(during.start + 30, during.stop)),
            ),
            {"HighBatchJobFailureRateUnexplained", "DuplicateJobs"},
            id="a cause that comes after an effect of something else",
        ),
    ],
)
def test_alarms_tell_of_each_of_several_faults(fault, expected, reading):
    outcome = run(fault, slice(BEGINS, BEGINS + 240), reading)

    assert sorted(notified(outcome)) == sorted(expected)


def test_alarm_is_told_of_again_when_the_fault_comes_back():
    def twice(world: World, _during: slice) -> None:
        for begins in (BEGINS, BEGINS + 200):
            faults.webserver_lost(world, slice(begins, begins + 40))

    assert notified(run(twice, slice(0))) == ["WebserverHeartbeatLostUnexplained"] * 2


# --- the list itself ---


def test_alarm_pages_are_explained_by_pages_alone():
    by_name = {alarm.name: alarm for alarm in ALARMS}

    hidden = [
        (alarm.name, cause)
        for alarm in ALARMS
        for cause in alarm.causes
        if alarm.severity == "page" and by_name[cause].severity != "page"
    ]
    assert hidden == []


def test_alarms_name_something_to_look_at_and_say_what_missing_data_means():
    assert [alarm.name for alarm in (*ALARMS, *ANOMALY_ALARMS) if not (alarm.look_at and alarm.owner)] == []
    assert [alarm.name for alarm in ALARMS if not alarm.missing.why] == []


@pytest.mark.parametrize("alarm", ALARMS, ids=lambda alarm: alarm.name)
def test_alarm_keeps_to_the_limits_of_cloudwatch(alarm):
    # PutMetricAlarm: whole minutes; 10 metrics in an expression; a day of evaluation periods.
    assert alarm.period_s % 60 == 0
    assert 1 <= alarm.datapoints <= alarm.periods
    assert alarm.period_s * alarm.periods <= 86_400
    assert len(alarm.series) == 1 or alarm.expression
    assert len(alarm.series) <= 10
    one = {series.id: np.ones((1, 1)) for series in alarm.series}
    if alarm.expression:
        assert MetricMath().evaluate(alarm.expression, one).shape == (1, 1)


def test_alarm_composites_keep_to_the_limits_of_cloudwatch():
    made = composites.composites(ALARMS)

    # alarm-combining: 100 alarms and 500 elements in a rule; PutCompositeAlarm: 10,240 characters.
    assert max(len(each.any_of) for each in made) <= 100
    assert all(len(" OR ".join(f'ALARM("{name}")' for name in each.any_of)) <= 10_240 for each in made)
    names = [each.name for each in (*ALARMS, *ANOMALY_ALARMS, *made)]
    assert len(names) == len(set(names))
    assert all(name.isascii() and len(name) <= 255 for name in names)


# --- composites, from a list of alarms ---


def alarm(name: str, **changes: object) -> Alarm:
    return replace(alarms.NOTICES_FAILING, name=name, **changes)


def test_alarm_without_fellows_and_causes_has_no_composite():
    assert composites.composites([alarm("A")]) == ()
    assert notifier(alarm("A")) == "A"


def test_alarm_composite_waits_for_all_that_explains_it():
    made = composites.composites(
        [
            alarm("Sign", incident="Outage"),
            alarm("Other", incident="Outage"),
            alarm("Cause", causes=("Sign",)),
            alarm("Effect", causes=("Cause",), wait_s=240, extension_s=900),
        ]
    )

    named = {each.name: each for each in made}
    assert list(named) == ["Outage", "CauseUnexplained", "EffectCauses", "EffectUnexplained"]
    assert named["Outage"].any_of == ("Sign", "Other")
    assert named["Outage"].suppressor is None
    assert named["CauseUnexplained"].suppressor == "Outage"
    assert named["EffectCauses"].any_of == ("Cause", "Outage")
    assert not named["EffectCauses"].notifies
    effect = named["EffectUnexplained"]
    assert (effect.any_of, effect.suppressor) == (("Effect",), "EffectCauses")
    assert (effect.wait_s, effect.extension_s) == (240, 900)
    assert [each.name for each in made if each.notifies_recovery] == ["Outage"]


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ([alarm("A", causes=("B",)), alarm("B")], "A: its cause B must stand before it"),
        ([alarm("A", causes=("Nothing",))], "A: its cause Nothing must stand before it"),
        ([alarm("A", causes=("A",))], "A: its cause A must stand before it"),
        (
            [alarm("A", incident="I"), alarm("B", causes=("A",)), alarm("C", incident="I")],
            "B: its cause A must stand before it",
        ),
        (
            [alarm("A", condition="HasAddress"), alarm("B", causes=("A",))],
            "B: its cause A exists only under HasAddress",
        ),
    ],
)
def test_alarm_causes_must_come_first_and_always_be_there(listed, sentence):
    with pytest.raises(ValueError, match=sentence):
        composites.composites(listed)
