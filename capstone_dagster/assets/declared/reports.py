"""The service report and DORA's figures as assets, made every day: their history shows the trend.

Reports have no video's name in them, so that nothing has to be removed from them when a video is deleted.
"""

from __future__ import annotations

import io
import json
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from capstone_dagster.assets.failing import as_failure
from capstone_dagster.assets.shown.metadata import OWNERS
from capstone_dagster.catalog.metrics import (
    CHANGE_FAILURE_RATE,
    DEPLOYMENTS_A_WEEK,
    LEAD_TIME,
    REWORK_RATE,
    TIME_TO_RESTORE,
)
from capstone_dagster.reports.delivery import Delivery, Release, delivery, delivery_report
from capstone_dagster.reports.gathering import history, service_facts
from capstone_dagster.reports.reading import Records, open_records
from capstone_dagster.reports.records import Period
from capstone_dagster.reports.service import service_report
from capstone_dagster.reports.shown import Report, as_markdown, as_text
from capstone_dagster.services import Services

if TYPE_CHECKING:
    from collections.abc import Hashable

SERVICE_DAYS, DELIVERY_DAYS = 30, 90
_WEEKS_SHOWN = 13


def _report_asset(name: str, description: str) -> Callable[..., Any]:
    return dg.asset(
        name=name,
        description=description,
        group_name="summaries",
        kinds={"markdown", "s3"},
        owners=OWNERS,
        tags={"compute": "cpu"},
        op_tags={"batch_gpu/compute": "cpu"},
    )


@_report_asset(
    "service_report",
    f"""The service levels of the last {SERVICE_DAYS} days beside our goals, as `capstone slo` shows them;
stored as `summaries/service_report` in text, Markdown and JSON.""",
)
def service_report_asset(services: dg.ResourceParam[Services]) -> dg.MaterializeResult[None]:
    """One reading of both databases, three files."""

    def make(records: Records, period: Period) -> Report:
        return service_report(service_facts(records, period, services.settings.gpu_usd_per_hour))

    return _made("service_report", services, SERVICE_DAYS, make)


@_report_asset(
    "delivery_report",
    f"""DORA's figures of the last {DELIVERY_DAYS} days, as `capstone dora` shows them, with a plot of
deployments by week; stored as `summaries/delivery_report` in text, Markdown and JSON.""",
)
def delivery_report_asset(services: dg.ResourceParam[Services]) -> dg.MaterializeResult[None]:
    """One reading of both databases, three files, one picture."""

    plot: dict[str, Any] = {}

    def make(records: Records, period: Period) -> Report:
        found = history(records, period.until)
        svg = b64encode(deployments_picture(found, period.until)).decode("ascii")
        _publish(services, delivery(found, period))
        plot["plot"] = dg.MetadataValue.md(f"![Deployments by week](data:image/svg+xml;base64,{svg})")
        return delivery_report(found, period)

    return _made("delivery_report", services, DELIVERY_DAYS, make, plot)


daily_reports = dg.define_asset_job(
    "daily_reports",
    selection=["service_report", "delivery_report"],
    description="Makes the service report and DORA's figures.",
    tags={"batch_gpu/compute": "cpu"},
    executor_def=dg.in_process_executor,
)
reports_schedule = dg.ScheduleDefinition(
    name="reports_schedule",
    job=daily_reports,
    # After retention, whose work the reports of the night then have in them.
    cron_schedule="47 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


def _publish(services: Services, figures: Delivery) -> None:
    values = {
        DEPLOYMENTS_A_WEEK: figures.a_week,
        LEAD_TIME: figures.lead_time_s,
        CHANGE_FAILURE_RATE: _hundredfold(figures.change_failure_rate),
        TIME_TO_RESTORE: figures.restore_s,
        REWORK_RATE: _hundredfold(figures.rework_rate),
    }
    services.metrics.add_all({metric: value for metric, value in values.items() if value is not None})


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def deployments_picture(found: Sequence[Release], until: float) -> bytes:
    """An SVG: deployments of each of the last weeks, those that failed apart."""
    # As in `daily_activity.py`: only this asset's run should spend a second on the import.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    last = _week(until)
    weeks = [last - timedelta(weeks=ago) for ago in reversed(range(_WEEKS_SHOWN))]
    counts: Counter[Hashable] = Counter((_week(each.deployment.seen), each.failed) for each in found)
    figure = Figure(figsize=(8, 2.4), dpi=80, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    labels = [f"{week:%m-%d}" for week in weeks]
    good = [counts[week, False] for week in weeks]
    axes.bar(labels, good, color="#31688e", label="good")
    axes.bar(labels, [counts[week, True] for week in weeks], bottom=good, color="#c44e52", label="failed")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"Deployments by week, until {datetime.fromtimestamp(until, UTC):%Y-%m-%d}", loc="left")
    axes.legend()
    svg = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", facecolor="white", metadata={"Date": None})
    return svg.getvalue()


def _made(
    name: str,
    services: Services,
    days: int,
    make: Callable[[Records, Period], Report],
    more: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult[None]:
    """Make a report, store it, and show it.

    Args:
        more: metadata that `make` leaves there.
    """
    until = time.time()
    try:
        with open_records(services.database) as records:
            report = make(records, Period(until - days * 86_400, until))
        for ending, text in {
            "txt": as_text(report),
            "md": as_markdown(report),
            "json": json.dumps(report.figures, indent=2),
        }.items():
            services.objects.put_bytes(f"summaries/{name}.{ending}", text.encode())
    except Exception as error:
        raise as_failure(error) from error
    # Whole numbers and floats are what Dagster's pages plot over time.
    numbers = {key: each for key, each in report.figures.items() if isinstance(each, (int, float))}
    return dg.MaterializeResult(
        metadata={
            **numbers,
            **(more or {}),
            "report": dg.MetadataValue.md(as_markdown(report)),
            "rows_read": records.rows,
            "file": dg.MetadataValue.path(services.objects.url(f"summaries/{name}.md")),
        }
    )


def _week(moment: float) -> datetime:
    """The Monday on which its week began."""
    day = datetime.fromtimestamp(moment, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())
