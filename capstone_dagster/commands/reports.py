"""`capstone trace` and the reports: how good the service is, from the pipeline's own records."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import find_video
from capstone_dagster.commands.joining import open_database
from capstone_dagster.commands.moments import HOW_TO_TYPE, checked, read_moment
from capstone_dagster.commands.options import DEFAULT_STATE, JsonOption, StateOption, VideoArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstone_dagster.reports.reading import Records
    from capstone_dagster.reports.records import Period
    from capstone_dagster.reports.shown import Report
    from capstone_dagster.storage.database import Database

MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]

PeriodOption = Annotated[
    str,
    typer.Option(
        "--since", metavar="TIME", callback=checked, help=f"Where the period begins: {HOW_TO_TYPE}."
    ),
]


def trace(
    video: VideoArgument,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show where the time of a video's latest upload went, as a waterfall of its runs and their steps.

    It is made from Dagster's events, so it needs no collector of traces.

    Example: `capstone trace 84`
    """
    from capstone_dagster.reports.waterfall import waterfall
    from capstone_dagster.storage.video_status import current_status

    database = open_database(state)
    video_id = find_video(database, video)
    [status] = database.transact(current_status, video_id)
    with _records(database) as records:
        runs = records.traced(status["upload_id"])
    _print(waterfall(video_id, status["uploaded_at"].timestamp(), runs), as_json, as_markdown, records)


def slo(
    since: PeriodOption = "30d",
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show the service levels of a period beside our goals: success, duplicates, incidents, times, cost.

    docs/reports.md defines each figure. Dagster makes the same report every day, as the asset service_report.

    Example: `capstone slo --since 30d`
    """
    from capstone_dagster.commands.joining import read_settings
    from capstone_dagster.reports.gathering import service_facts
    from capstone_dagster.reports.service import service_report

    database = open_database(state)
    with _records(database) as records:
        facts = service_facts(records, _period(since), read_settings().gpu_usd_per_hour)
    _print(service_report(facts), as_json, as_markdown, records)


def dora(
    since: PeriodOption = "90d",
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show DORA's five figures of software delivery, and what became of each deployment.

    The code location notes its version once it has loaded; the runs under it show whether it failed.

    Example: `capstone dora --since 90d`
    """
    from capstone_dagster.reports.delivery import delivery_report
    from capstone_dagster.reports.gathering import history

    database = open_database(state)
    period = _period(since)
    with _records(database) as records:
        report = delivery_report(history(records, period.until), period)
    _print(report, as_json, as_markdown, records)


def incidents(
    since: PeriodOption = "30d",
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show which causes recur among failed runs, each with an example and its page of the runbook.

    Example: `capstone incidents --since 7d`
    """
    from capstone_dagster.commands.joining import read_settings
    from capstone_dagster.reports.causes import causes_report

    database = open_database(state)
    period, most = _period(since), 5000
    with _records(database) as records:
        failures = records.failures(period, most=most)
    report = causes_report(failures, period, runbook=read_settings().runbook_url, most=most)
    _print(report, as_json, as_markdown, records)


def perf_report(
    video: Annotated[
        str | None, typer.Argument(metavar="[VIDEO]", help="A video's id or external id; by default all.")
    ] = None,
    since: PeriodOption = "30d",
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show which leg of an upload's way takes longest, and what to change; slow statements, idle GPUs.

    Example: `capstone perf-report --since 7d`
    """
    from capstone_dagster.reports.performance import performance_report

    database = open_database(state)
    video_id = None if video is None else find_video(database, video)
    period, most = _period(since), 2000
    with _records(database) as records:
        journeys = records.journeys(period, most=most, video_id=video_id)
        statements = records.statements(most=8)
    report = performance_report(journeys, statements, period, most=most, video_id=video_id)
    _print(report, as_json, as_markdown, records)


def _period(since: str) -> Period:
    from capstone_dagster.reports.records import Period

    begin = read_moment(since)
    assert begin is not None
    return Period(begin.timestamp(), time.time())


@contextmanager
def _records(database: Database) -> Iterator[Records]:
    from capstone_dagster.reports.reading import open_records

    with open_records(database) as records:
        yield records


def _print(report: Report, as_json: bool, as_markdown: bool, records: Records) -> None:
    from capstone_dagster.reports.shown import as_markdown as markdown
    from capstone_dagster.reports.shown import as_text

    if as_json and as_markdown:
        raise typer.BadParameter("--json and --markdown exclude each other: give one of them")
    if as_json:
        terminal.print_json(report.figures)
    else:
        print(markdown(report) if as_markdown else as_text(report))
        if terminal.err.is_terminal:
            terminal.note(f"Read {records.rows:,} rows by {records.queries} statements.", style="dim")
