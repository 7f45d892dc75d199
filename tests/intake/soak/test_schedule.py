"""A schedule is what it is said to be: the same for a seed, half of it duplicates, every point in it."""

from collections import Counter

from tests.intake.soak.points import Point
from tests.intake.soak.schedule import make_schedule


def test_a_seed_gives_one_schedule() -> None:
    assert make_schedule(7, messages=500) == make_schedule(7, messages=500)
    assert make_schedule(7, messages=500) != make_schedule(8, messages=500)


def test_half_of_the_messages_are_copies_and_every_point_has_a_life() -> None:
    schedule = make_schedule(7, messages=2000, duplicates=0.5)

    sent = Counter(message.number for wave in schedule.waves for message in wave.sends)
    assert sent.total() == 2000
    assert 0.48 <= 1 - len(sent) / 2000 <= 0.52
    assert Counter(life.point for wave in schedule.waves for life in wave.lives if life.point) == Counter(
        Point
    )
    assert sum(point.kills for point in Point) >= 12


def test_a_schedule_holds_every_mishap() -> None:
    schedule = make_schedule(7, messages=2000)

    puts = [put for wave in schedule.waves for put in wave.puts]
    assert len({put.key for put in puts}) < len(puts), "keys uploaded again"
    assert len({put.content for put in puts}) < len(puts), "the same bytes again"
    removals = [removal for wave in schedule.waves for removal in wave.removals]
    assert {removal.number is None for removal in removals} == {True, False}
    assert any(wave.forgotten for wave in schedule.waves), "old runs deleted"
    assert {allowed is None for allowed in schedule.forbidden.values()} == {True, False}
    lives = [life for wave in schedule.waves for life in wave.lives]
    assert {life.brief_visibility for life in lives} == {life.long_outage for life in lives} == {True, False}
