"""The service report: figures of a period computed by hand."""

from dataclasses import replace

import pytest

from capstone_dagster.failures.past_incidents import PastIncident, merged
from capstone_dagster.reports.records import DayOfWork, EndedRuns, Journey, LostPass, Period, Uploads
from capstone_dagster.reports.service import Facts, service, service_report
from capstone_dagster.reports.shown import as_markdown, as_text

DAY = 86_400.0
BEGIN = 1_800_000_000.0 - 1_800_000_000.0 % DAY  # a midnight
FACTS = Facts(
    period=Period(BEGIN, BEGIN + 10 * DAY),
    # 1,998 of 2,000 that could be analysed: 0.1 % may fail, and did.
    uploads=Uploads(1998, {"worker-lost": 2, "undecodable-video": 20}),
    journeys=[Journey("r", "v", 0.0, at, at + 2, at + 5, at + 9, at + 14) for at in (1.0, 3.0)],
    journeys_most=2000,
    work=[DayOfWork(BEGIN, 1000, 200.0, 3600.0, 100.0), DayOfWork(BEGIN + DAY, 1000, 100.0, 3600.0, 100.0)],
    ended=EndedRuns(1990, {"database-unavailable": 5, "worker-lost": 4}, 1),
    lost=[LostPass("a", 1800.0, False), LostPass("b", 1800.0, True)],
    incidents=[
        PastIncident("i", "worker-lost", BEGIN + 100, BEGIN + 130, BEGIN + 700, 2),
        PastIncident("j", "dead-letters", BEGIN + 200, BEGIN + 290, None, 1),
        PastIncident("before", "internal", BEGIN - 100, BEGIN - 10, BEGIN + 10, 1),
    ],
    prevented={"2027-01-15": 7, "2026-12-01": 100},
    usd_per_gpu_hour=3.0,
)  # fmt: skip


def test_the_figures_are_those_computed_by_hand() -> None:
    found = service(FACTS)

    assert found.uploads == 2020
    assert found.success == pytest.approx(0.999)
    assert found.success_of_all == pytest.approx(1998 / 2020)
    assert found.error_budget_left == pytest.approx(0.0)
    assert (found.prevented_duplicates, found.launched_duplicates) == (7, 1)
    # An hour at 3 USD in ten days.
    assert (found.wasted_gpu_s, found.wasted_usd_a_month) == (3600.0, pytest.approx(9.0))
    assert found.connections == pytest.approx(0.9975)
    assert (found.incidents, found.detect_p50_s, found.detect_max_s) == (2, 60.0, 90.0)
    assert (found.restore_p50_s, found.restore_max_s) == (600.0, 600.0)
    assert found.legs["upload → run on record"]["p50"] == pytest.approx(2.0)
    assert found.legs["upload → published"]["p95"] == pytest.approx(16.9)
    assert found.speedup == pytest.approx(2.0)
    assert (found.usd_a_video, found.usd_a_month) == (pytest.approx(0.003), pytest.approx(18.0))


def test_levels_stand_beside_the_goals_and_the_system_before() -> None:
    text = as_text(service_report(FACTS))
    lines = {line.strip().split("  ")[0]: line for line in text.splitlines()}

    assert lines["analyses that succeed"].split("  ")[-1].strip() == "met"
    assert "73 % → 98.5 %" in lines["analyses that succeed"]
    assert lines["duplicate passes launched"].split("  ")[-1].strip() == "missed"
    assert lines["runs that reach the event store"].split("  ")[-1].strip() == "missed"
    assert "Passes were 2.00 times faster" in text
    assert "1 incident has not been restored." in text
    assert "| analyses that succeed |" in as_markdown(service_report(FACTS))


NOTHING = replace(
    FACTS, uploads=Uploads(), journeys=[], work=[], ended=EndedRuns(), lost=[], incidents=[], prevented={}
)
SET_BACK = replace(FACTS, journeys=[Journey("r", "v", 5.0, 1.0, 3.0, 6.0, 10.0, 15.0)])


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (NOTHING, "there is nothing to report yet"),
        (replace(FACTS, period=Period(BEGIN, BEGIN - 1)), "The period is empty"),
        (SET_BACK, "1 upload left a stage before it was reached"),
        (replace(FACTS, usd_per_gpu_hour=None), "CAPSTONE_GPU_USD_PER_HOUR is not set"),
        (replace(FACTS, uploads=Uploads(990, {"internal": 10})), "The error budget is used up 10.0 times"),
    ],
    ids=["no data yet", "empty period", "clock set back", "no price", "budget used up"],
)
def test_what_is_missing_or_wrong_is_said(facts: Facts, said: str) -> None:
    assert said in as_text(service_report(facts))


def test_the_first_notice_of_an_incident_is_the_one_that_counts() -> None:
    opened = PastIncident("i", "internal", 10.0)
    told = merged(merged([], [opened]), [replace(opened, announced=15.0)])
    again = merged(told, [replace(opened, announced=500.0, closed=600.0, extent=3)])

    assert again == [PastIncident("i", "internal", 10.0, 15.0, 600.0, 3)]
