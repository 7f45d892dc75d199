"""What each report needs, asked of the records; shared by the commands and the scheduled assets."""

from __future__ import annotations

from itertools import accumulate

from capstone_dagster.failures.past_incidents import PAST_INCIDENTS, PastIncident
from capstone_dagster.failures.prevented_duplicates import PREVENTED
from capstone_dagster.reports.delivery import OF_A_CHANGE, Release, releases
from capstone_dagster.reports.deployments import DEPLOYMENTS
from capstone_dagster.reports.reading import Records
from capstone_dagster.reports.records import Period
from capstone_dagster.reports.service import Facts

# Enough for a 99th percentile, and little to read.
_JOURNEYS = 2000


def service_facts(records: Records, period: Period, usd_per_gpu_hour: float | None) -> Facts:
    """What :func:`~capstone_dagster.reports.service.service_report` reports on."""
    [ended] = records.ended_runs(period)
    incidents: list[PastIncident] = records.kept(PAST_INCIDENTS)
    prevented: dict[str, int] = records.kept(PREVENTED)
    return Facts(
        period=period,
        uploads=records.uploads(period),
        journeys=records.journeys(period, most=_JOURNEYS),
        journeys_most=_JOURNEYS,
        work=records.work(period),
        ended=ended,
        lost=records.lost_passes(period),
        incidents=incidents,
        prevented=prevented,
        usd_per_gpu_hour=usd_per_gpu_hour,
    )


def history(records: Records, until: float) -> list[Release]:
    """Every deployment on record, with what happened under it."""
    deployments = records.kept(DEPLOYMENTS)
    if not deployments:
        return []
    # They stand in the order in which they were noted; after a clock was set back, their times do not.
    whole = Period(min(each.seen for each in deployments), until)
    _, *under = records.ended_runs(whole, list(accumulate((each.seen for each in deployments), max)))
    failures = records.failed_at(whole, OF_A_CHANGE)
    return releases(deployments, under, failures, records.first_success_after)
