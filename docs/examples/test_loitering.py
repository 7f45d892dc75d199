from loitering import loitering

from capstone_dagster.analysis import EventRules
from capstone_dagster.testing import Visit, events_of


def test_who_stays_is_told_from_who_passes() -> None:
    events = events_of(Visit(0, 8, track=1), Visit(5, 45, track=2), Visit(6, 50, track=3, label="face"))

    assert [event.track_id for event in loitering(events)] == [2]


def test_a_gap_ends_a_presence() -> None:
    twice = [Visit(0, 20), Visit(26, 46)]  # one track, unseen for six seconds

    assert len(loitering(events_of(*twice))) == 1
    assert loitering(events_of(*twice, rules=EventRules(max_gap_s=5))) == []
