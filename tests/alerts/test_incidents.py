"""How failures become notices: at once, then counted, then over. No server, no clock of its own."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstone_dagster.alerts.incidents import (
    CALM_S,
    ENDS_WITH_ANY_RUN,
    MAX_INCIDENTS,
    UPDATE_AFTER_S,
    Incident,
    Kind,
    Record,
    Trouble,
    due,
    fingerprint,
    observe,
    sent,
)
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.cursors import from_json, to_json
from capstone_dagster.failures.verdicts import Cause, Outcome, Verdict

DATABASE = FailureClass.DATABASE_UNAVAILABLE
START = 1_000_000.0


def failure(
    number: int = 0, kind: FailureClass = DATABASE, at: float = START, cause: str = "It does not answer."
) -> Verdict:
    return Verdict(
        f"run-{number}",
        "analyze_upload",
        Outcome.FAILED,
        started_at=at,
        ended_at=at,
        cause=Cause(kind, cause),
        video_id=f"video-{number}",
    )


def success(started_at: float, video_id: str) -> Verdict:
    return Verdict("well", "analyze_upload", Outcome.SUCCEEDED, started_at, started_at + 1, video_id=video_id)


def tell(record: Record, now: float) -> list[tuple[str, Kind, int]]:
    """Send everything that is due, as the sensor does; what was sent: key, kind, how many runs."""
    notices = []
    for incident, kind in list(due(record)):
        notices.append((incident.key, kind, incident.runs))
        sent(record, incident, kind, now)
    return notices


def stored(record: Record) -> Record:
    """As it comes back from a cursor."""
    return from_json(Record, to_json(record))


def test_alerts_outlive_a_version_that_was_rolled_back() -> None:
    record = Record()
    observe(record, verdicts=[failure()], now=START)
    kept = json.loads(to_json(record))
    kept["incidents"][0]["of_a_later_version"] = 1

    assert tell(from_json(Record, json.dumps(kept)), START) == [("database-unavailable", "failure", 1)]


def test_500_failures_for_one_reason_make_one_alert_with_a_count() -> None:
    record = Record()

    observe(record, verdicts=[failure(number) for number in range(500)], now=START)

    assert tell(record, START) == [("database-unavailable", "failure", 500)]
    observe(record, now=START + 3600)
    assert tell(record, START + 3600) == []


def test_alerts_of_what_follows_come_at_growing_intervals() -> None:
    record, told_at = Record(), []

    for second in range(0, 2 * 3600, 5):  # one more failure with each tick
        observe(record, verdicts=[failure(second, at=START + second)], now=START + second)
        if tell(record, START + second):
            told_at.append(second)

    waits = [later - earlier for earlier, later in pairwise(told_at)]
    assert told_at[0] == 0
    assert waits == list(UPDATE_AFTER_S[: len(waits)])
    assert len(waits) == 4


@pytest.mark.parametrize("kind", FailureClass)
def test_an_alert_of_each_class_comes_at_once_and_its_end_is_told(kind: FailureClass) -> None:
    record = Record()
    observe(record, verdicts=[failure(1, kind)], now=START + 1)
    [(key, first, _)] = tell(record, START + 1)
    assert (key.split()[0], first) == (kind.value, "failure")

    # Another video's success ends what meets every run, and says nothing about one video.
    other = success(START + 10, "another")
    observe(record, verdicts=[other], now=START + 20 + CALM_S)
    is_over = bool(tell(record, START + 20 + CALM_S))
    assert is_over == (kind in ENDS_WITH_ANY_RUN)

    observe(record, verdicts=[success(START + 60, "video-1")], now=START + 70 + CALM_S)
    notices = tell(record, START + 70 + CALM_S)
    assert notices == ([] if is_over else [(key, "recovery", 1)])


def test_an_alert_is_not_over_by_a_run_that_had_begun_before_the_failure() -> None:
    record = Record()
    observe(record, verdicts=[failure(at=START)], now=START)
    observe(record, verdicts=[success(START - 5, "another")], now=START + 3600)

    assert [kind for _, kind in due(record)] == ["failure"]


def test_an_alert_is_over_only_after_a_calm() -> None:
    record = Record()
    observe(record, verdicts=[failure()], now=START)
    observe(record, verdicts=[success(START + 1, "another")], now=START + 2)
    observe(record, verdicts=[failure(2, at=START + 3)], now=START + 4)
    observe(record, now=START + 4 + CALM_S)

    assert "recovery" not in [kind for _, kind in due(record)]


def test_alerts_of_what_comes_and_goes_become_seldom() -> None:
    record, notices = Record(), Counter[str]()

    for second in range(0, 6 * 3600, 10):  # fails and succeeds in turn, six hours long
        at = START + second
        observe(
            record,
            verdicts=[failure(second, at=at)]
            if second % 120 == 0
            else [success(at - 1, "another")]
            if second % 120 == 60
            else [],
            now=at,
        )
        notices.update(kind for _, kind, _ in tell(record, at))

    assert notices["failure"] <= 4
    assert sum(notices.values()) <= 16


def test_one_cause_seen_by_sensors_and_runs_is_one_alert() -> None:
    record = Record()
    ticks = [
        Trouble(f"sensor {name}", "It does not answer.", DATABASE.value, DATABASE) for name in ("a", "b")
    ]
    observe(record, troubles=ticks, now=START)
    observe(record, troubles=ticks, verdicts=[failure()], now=START + 1)
    assert tell(record, START + 1) == [("database-unavailable", "failure", 1)]

    observe(record, troubles=ticks[:1], now=START + 100)
    assert tell(record, START + 100) == []
    observe(record, now=START + 105)
    observe(record, now=START + 101 + CALM_S)
    assert tell(record, START + 200) == [("database-unavailable", "recovery", 1)]


@pytest.mark.parametrize("after_s", [-5, 5])
def test_an_alert_ends_although_a_run_is_seen_to_have_failed_after_its_trouble_was_gone(after_s: int) -> None:
    """Why a worker had to stop is known some seconds later, and a run may have been about to fail."""
    trouble = Trouble("sensor upload_sensor", "It does not answer.", "database-unavailable", DATABASE)
    record = Record()
    observe(record, troubles=[trouble], now=START)
    observe(record, now=START + 10)
    observe(record, verdicts=[failure(at=START + 10 + after_s)], now=START + 20)
    tell(record, START + 20)

    observe(record, verdicts=[success(START + 30, "video-9")], now=START + 60)
    observe(record, now=START + 60 + CALM_S)

    assert ("database-unavailable", "recovery", 1) in tell(record, START + 60 + CALM_S)


def test_a_source_that_cannot_be_seen_ends_no_alert() -> None:
    record = Record()
    letters = Trouble("dead letters", "2 messages.", "dead-letters", count=2)
    observe(record, troubles=[letters], now=START)
    tell(record, START)

    observe(record, unseen={"dead"}, now=START + 600)
    assert tell(record, START + 600) == []
    observe(record, now=START + 601)
    assert [kind for _, kind, _ in tell(record, START + 601)] == ["recovery"]


def test_more_dead_letters_are_one_more_alert_not_one_each() -> None:
    record = Record()
    for second in range(0, 50, 5):
        letters = Trouble("dead letters", "Messages.", "dead-letters", count=1 + second)
        observe(record, troubles=[letters], now=START + second)
        notices = tell(record, START + second)
        assert [kind for _, kind, _ in notices] == (["failure"] if second == 0 else [])
    observe(record, troubles=[letters], now=START + UPDATE_AFTER_S[0])
    assert [kind for _, kind, _ in tell(record, START + UPDATE_AFTER_S[0])] == ["update"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("s3://raw/a/1.mp4 may not be read", "s3://raw/b/22.mp4 may not be read", True),
        ("Role 'x' lacks s3:GetObject", "Role 'y' lacks s3:GetObject", True),
        ("job 6f9619ff-8b86-d011-b42d is refused", "job 11112222-8b86-d011-b42d is refused", True),
        ("Role 'x' lacks s3:GetObject", "Role 'x' lacks sqs:SendMessage", False),
    ],
)
def test_alerts_are_grouped_by_what_causes_have_in_common(one: str, other: str, same: bool) -> None:
    assert (fingerprint(one) == fingerprint(other)) == same
    record = Record()
    kind = FailureClass.PERMISSION_DENIED
    observe(record, verdicts=[failure(1, kind, cause=one), failure(2, kind, cause=other)], now=START)
    assert len(tell(record, START)) == (1 if same else 2)


def test_nobody_is_flooded_by_alerts_of_causes_that_are_all_different() -> None:
    record = Record()
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    different = [
        failure(number, FailureClass.INTERNAL, cause=f"{one} {other} broke")
        for number, (one, other) in enumerate((one, other) for one in words for other in words)
    ]
    observe(record, verdicts=different, now=START)

    notices = tell(record, START)
    assert len(notices) <= 5
    assert sum(runs for _, _, runs in notices) == len(different)


def test_a_broken_file_is_put_away_without_a_word() -> None:
    record = Record()
    observe(record, verdicts=[failure(1, FailureClass.UNDECODABLE_VIDEO)], now=START)
    tell(record, START)
    observe(record, now=START + 7 * 3600)

    assert record.incidents == []


def test_what_is_dropped_is_said_in_the_next_alert() -> None:
    record = Record()
    for number in range(MAX_INCIDENTS + 10):
        trouble = Trouble(f"sensor s{number}", "It fails.", "sensor-failing")
        observe(record, troubles=[trouble], unseen={"sensor"}, now=START + number)

    assert len(record.incidents) == MAX_INCIDENTS
    assert record.given_up == 10
    assert len(to_json(record)) < 100_000


FAILURES = st.lists(
    st.tuples(
        st.sampled_from(list(FailureClass)),
        st.sampled_from(["It broke.", "Role 'a' lacks x", "Disk 7 is full"]),
        st.integers(0, 9),
    ),
    max_size=6,
)
TICKS = st.lists(
    st.tuples(
        st.floats(1, 5000),  # seconds until this tick
        FAILURES,
        st.lists(st.integers(0, 9), max_size=3),  # videos that ended well
        st.sets(st.sampled_from(["sensor a", "sensor b", "dead letters"])),
        st.integers(0, 3),  # how many notices SNS takes
    ),
    max_size=20,
)


@given(TICKS)
@settings(max_examples=150, deadline=None)
def test_no_failure_is_left_out_of_the_alerts_whatever_happens(ticks: list) -> None:  # type: ignore[type-arg]
    """Every failure is in the count of some failure notice or update, however SNS behaves in between."""
    record, now, number = Record(), START, 0
    failed: Counter[str] = Counter()
    notices: dict[str, int] = {}
    ended: set[str] = set()

    def send(limit: int) -> None:
        for incident, kind in list(due(record))[:limit]:
            check_order(incident, kind)
            sent(record, incident, kind, now)

    def check_order(incident: Incident, kind: Kind) -> None:
        assert incident.id not in ended, "no notice follows an incident's end"
        assert (kind == "failure") == (incident.id not in notices), "the first notice is of the failure"
        notices[incident.id] = incident.runs
        if kind == "recovery":
            ended.add(incident.id)

    for wait_s, failures, well, names, limit in ticks:
        now += wait_s
        new = []
        for kind, cause, video in failures:
            number += 1
            failed[kind.value] += 1
            new.append(replace(failure(number, kind, at=now, cause=cause), video_id=f"v{video}"))
        observe(
            record,
            verdicts=[*new, *(success(now - 1, f"v{video}") for video in well)],
            troubles=[Trouble(name, "It fails.", "sensor-failing") for name in names],
            now=now,
        )
        record = stored(record)
        send(limit)
        record = stored(record)

    for _ in range(4):  # SNS is well at last, and nothing new happens
        now += UPDATE_AFTER_S[-1]
        observe(record, now=now)
        send(1000)
    assert sum(notices.values()) == sum(failed.values())
