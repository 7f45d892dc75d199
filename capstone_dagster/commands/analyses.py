"""`capstone analyses`, `compare` and `rollback`: list, compare and restore results of a video."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import (
    asked_before,
    current_of,
    find_analyses,
    find_analysis,
    find_video,
    published_before,
)
from capstone_dagster.commands.joining import dagster_instance, object_store, open_database, read_settings
from capstone_dagster.commands.options import (
    DEFAULT_STATE,
    ByOption,
    CsvOption,
    JsonOption,
    JsonRowsOption,
    StateOption,
    VideoArgument,
)
from capstone_dagster.commands.writing import appearing, check_file

if TYPE_CHECKING:
    from capstone_dagster.analysis.comparison import Comparison
    from capstone_dagster.storage.analyses import Rollback
    from capstone_dagster.storage.objects import ObjectStore


_COLUMNS = (
    "analysis_id", "is_current", "model", "model_sha256", "settings", "events", "tracks", "detections",
    "frames_analyzed", "device", "seconds", "gpu_seconds", "detection_id", "detection_version",
    "events_version", "upload_id", "run_id", "requested_at", "published_at",
)  # fmt: skip


def analyses(
    video: VideoArgument,
    as_json: JsonRowsOption = False,
    as_csv: CsvOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """List a video's analyses: model, settings, number of events, and which one is current.

    Every analysis stays stored. `capstone compare` shows how two of them differ, `capstone rollback` makes an
    earlier one current again.

    Example: `capstone analyses 84`
    """
    from capstone_dagster import terminal_tables as tables

    form = terminal.format_of(as_json=as_json, as_csv=as_csv)
    database = open_database(state)
    found = [
        {name: row[name] for name in _COLUMNS} for row in find_analyses(database, find_video(database, video))
    ]
    terminal.print_rows(found, form, tables.analyses_table, columns=_COLUMNS)


def compare(
    video: VideoArgument,
    before: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ANALYSIS",
            help="An analysis's id or its beginning; by default the one requested before the other.",
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--to", metavar="ANALYSIS", help="The other analysis; by default the current one."),
    ] = None,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Also write a page with pictures side by side, in one file."),
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show which events appeared, vanished or moved between two analyses of a video.

    Use it before you change the model: analyse some videos with both, and look at the differences. Events
    are the same if they share time and place. Which analysis is right, only the pictures show.

    Example: `capstone compare 84 --html 84.html`
    """
    from capstone_dagster import terminal_tables as tables
    from capstone_dagster.analysis import Event
    from capstone_dagster.analysis.comparison import compare_events
    from capstone_dagster.storage.events import events_of

    if html is not None:
        check_file(html)
    database = open_database(state)
    video_id = find_video(database, video)
    found = find_analyses(database, video_id)
    second = find_analysis(found, after) if after else current_of(found)
    if second is None:
        raise typer.BadParameter(f"{video_id} has no current analysis: name one with --to")
    first = find_analysis(found, before) if before else asked_before(found, second)
    if first is None:
        raise typer.BadParameter(
            f"{video_id} has only one analysis, {second['analysis_id']}: analyse it again, with another "
            "model say, and compare the two"
        )
    events = [
        [Event.of(row) for row in database.transact(events_of, analysis["analysis_id"])]
        for analysis in (first, second)
    ]
    comparison = compare_events(*events)
    if html is not None:
        from capstone_dagster.commands.comparison_page import comparison_page

        page = comparison_page(video_id, first, second, comparison, _pictures(object_store()))
        with appearing(html) as partial:
            partial.write_text(page, encoding="utf-8")
        terminal.note(f"Wrote {html}")
    if as_json:
        terminal.print_json(_as_json(video_id, first, second, comparison))
        return
    terminal.say(f"{video_id}: {_named(first)} → {_named(second)}")
    terminal.say(comparison.sentence)
    if not comparison.identical:
        terminal.print_table(tables.comparison_table(comparison))


def rollback(
    video: VideoArgument,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="ANALYSIS",
            help="An analysis's id or its beginning; by default the one published before the current one.",
        ),
    ] = None,
    by: ByOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Make an earlier analysis of a video current again, at once.

    Consumers then see its events and get the notice `video.analyzed`. Nothing is computed or lost: `--to`
    makes any other analysis current. The rollback counts as a request made now: results of earlier requests
    do not replace it, those of later requests do.

    Dagster shows it as a materialisation of `events`, with who ordered it.

    Example: `capstone rollback 84`
    """
    from capstone_dagster.storage.analyses import roll_back

    database = open_database(state)
    video_id = find_video(database, video)
    found = find_analyses(database, video_id)
    current = current_of(found)
    if to is not None:
        target = find_analysis(found, to)
    elif current is None:
        raise typer.BadParameter(f"{video_id} has no current analysis: name one with --to")
    else:
        earlier = published_before(found, current)
        if earlier is None:
            raise typer.BadParameter(
                f"no analysis of {video_id} was published before the current one, {current['analysis_id']}; "
                "`capstone analyses` lists all, and --to names one"
            )
        target = earlier
    done = database.transact(roll_back, video_id, target["analysis_id"])
    if done.changed:
        message = f"{video_id}: {_named(target)} is current again, with {done.events} events."
        if current is not None:
            message += f" Before it was {_named(current)}, with {current['events']} events."
    else:
        message = f"{video_id}: {_named(target)} is current already, with {done.events} events."
    terminal.say(message)
    if done.changed:
        _show_in_dagster(target, done, by or getpass.getuser(), state)


def _show_in_dagster(target: Mapping[str, Any], done: Rollback, by: str, state: Path) -> None:
    from capstone_dagster.assets.shown.rollbacks import report_rollback
    from capstone_dagster.failures.classes import sentence
    from capstone_dagster.services import Services

    try:
        with dagster_instance(state) as instance:
            report_rollback(instance, Services(read_settings()), target, done, by=by)
    except Exception as error:  # consumers see the earlier analysis already: what only shows it may fail
        terminal.note(f"Dagster's pages do not show it: {sentence(error)}")


def _named(analysis: Mapping[str, Any]) -> str:
    made_with = f"{analysis['model']}, {terminal.settings_text(analysis['settings'])}"
    return f"{analysis['analysis_id'][:12]} ({made_with})"


def _pictures(objects: ObjectStore) -> Any:
    from capstone_dagster.storage.errors import ObjectNotFound

    def picture(key: str) -> bytes | None:
        try:
            return objects.get_bytes(key)
        except ObjectNotFound:
            return None  # deleted since, by retention say: the page does without

    return picture


def _as_json(
    video_id: str, first: Mapping[str, Any], second: Mapping[str, Any], comparison: Comparison
) -> dict[str, Any]:
    def about(analysis: Mapping[str, Any]) -> dict[str, Any]:
        names = ("analysis_id", "model", "model_sha256", "settings", "events", "is_current")
        return {name: analysis[name] for name in names} | {
            name: analysis[name].isoformat() for name in ("requested_at", "published_at")
        }

    return {
        "video_id": video_id,
        "from": about(first),
        "to": about(second),
        "counts": comparison.counts,
        "appeared": [asdict(event) for event in comparison.appeared],
        "vanished": [asdict(event) for event in comparison.vanished],
        "moved": [asdict(pair) for pair in comparison.moved],
    }
