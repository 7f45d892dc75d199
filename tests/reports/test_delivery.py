"""DORA's figures, on a history of deployments computed by hand."""

from dataclasses import replace

import pytest

from capstone_dagster.reports.delivery import delivery, delivery_report, releases
from capstone_dagster.reports.deployments import Deployment
from capstone_dagster.reports.records import EndedRuns, Period
from capstone_dagster.reports.shown import as_text

HOUR, DAY = 3600.0, 86_400.0
# A good version; one whose runs fail, then one that mends it; one that is rolled back, and the rollback.
GOOD = Deployment("a" * 12, 0.0, 2 * HOUR)
BROKEN = Deployment("b" * 12, 1 * DAY, 1 * DAY + 4 * HOUR)
MENDED = Deployment("c" * 12, 2 * DAY, 2 * DAY + 6 * HOUR)
WITHDRAWN = Deployment("d" * 12, 3 * DAY, 3 * DAY + 8 * HOUR)
ROLLBACK = replace(MENDED, seen=WITHDRAWN.seen + HOUR)
HISTORY = [GOOD, BROKEN, MENDED, WITHDRAWN, ROLLBACK]
FAILED = [BROKEN.seen + 600, BROKEN.seen + 1200]
PERIOD = Period(0.0, 14 * DAY)


def made(deployments: list[Deployment], failures: list[float], success_at: float | None = None) -> str:
    history = releases(deployments, [EndedRuns(9)] * len(deployments), failures, lambda _: success_at)
    return as_text(delivery_report(history, PERIOD))


def test_the_five_figures_are_those_computed_by_hand() -> None:
    runs = [EndedRuns(100), EndedRuns(8, {"internal": 2}), *[EndedRuns(50)] * 3]
    asked: list[float] = []

    def first_success_after(moment: float) -> float:
        asked.append(moment)
        return moment + 1800

    history = releases(HISTORY, runs, FAILED, first_success_after)
    found = delivery(history, PERIOD)

    assert [each.failed for each in history] == [False, True, False, True, False]
    assert asked == [FAILED[-1]]  # it works again after the last failure, not between two of them
    assert (found.deployments, found.a_week) == (5, pytest.approx(2.5))
    # 2, 4, 6 and 8 hours; a rollback has none.
    assert found.lead_time_s == pytest.approx(5 * HOUR)
    assert found.change_failure_rate == pytest.approx(2 / 5)
    # 600 s to the last failure and 1,800 to the next success; an hour until the rollback.
    assert found.restore_s == pytest.approx((2400 + 3600) / 2)
    assert found.rework_rate == pytest.approx(2 / 5)


def test_a_period_counts_its_own_deployments_alone() -> None:
    history = releases(HISTORY, [EndedRuns()] * 5, FAILED, lambda moment: moment)

    assert delivery(history, Period(MENDED.seen, MENDED.seen + DAY)).deployments == 1
    # What it mends was deployed before the period.
    assert delivery(history, Period(MENDED.seen, MENDED.seen + DAY)).rework_rate == 1.0


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (lambda: made([], []), "No deployment is on record"),
        (lambda: made([replace(GOOD, committed=None)], []), "without the time of its commit"),
        (lambda: made([replace(GOOD, committed=GOOD.seen + DAY)], []), "a clock was set back"),
        (lambda: made([GOOD], [GOOD.seen + 1]), "failed, not restored"),
        (lambda: made(HISTORY, []), "rolled back"),
        (lambda: as_text(delivery_report([], Period(5.0, 5.0))), "The period is empty"),
    ],
    ids=["no data yet", "no commit", "clock set back", "not restored", "rolled back", "empty period"],
)
def test_what_is_missing_or_wrong_is_said(report: object, said: str) -> None:
    assert callable(report)
    assert said in report()
