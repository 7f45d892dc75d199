"""`capstone trace` and the reports: how good the service is, from the pipeline's own records."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import find_video
from capstone_dagster.commands.joining import open_database
from capstone_dagster.commands.options import DEFAULT_STATE, JsonOption, StateOption, VideoArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstone_dagster.reports.reading import Records
    from capstone_dagster.reports.shown import Report
    from capstone_dagster.storage.database import Database

MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]


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
    _print(waterfall(video_id, status["uploaded_at"].timestamp(), runs), as_json, as_markdown)


@contextmanager
def _records(database: Database) -> Iterator[Records]:
    from capstone_dagster.reports.reading import open_records

    with open_records(database) as records:
        yield records


def _print(report: Report, as_json: bool, as_markdown: bool) -> None:
    from capstone_dagster.reports.shown import as_markdown as markdown
    from capstone_dagster.reports.shown import as_text

    if as_json and as_markdown:
        raise typer.BadParameter("--json and --markdown exclude each other: give one of them")
    if as_json:
        terminal.print_json(report.figures)
    else:
        print(markdown(report) if as_markdown else as_text(report))
