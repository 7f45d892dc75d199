"""`capstone submit`, `status`, `events` and `analyze`: videos in, events out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import find_video
from capstone_dagster.commands.following import follow, video_page
from capstone_dagster.commands.joining import join_local_stack, open_database, read_settings
from capstone_dagster.commands.options import (
    DEFAULT_STATE,
    CameraOption,
    CsvOption,
    JsonRowsOption,
    LabelOption,
    SinceOption,
    StateOption,
    UntilOption,
    VideosArgument,
    event_filter,
)
from capstone_dagster.commands.sentences import sentence_of
from capstone_dagster.commands.waiting import WAITING_COLUMNS, with_waiting

if TYPE_CHECKING:
    from rich.console import RenderableType

    from capstone_dagster.storage.database import Database

_POLL_S = 2.0


def submit(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO", help="Video files.")],
    external_id: Annotated[
        str | None, typer.Option(help="The back end's own id of the video (one video only).")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="The camera; also the key's first folder.")] = None,
    recorded_at: Annotated[
        str | None, typer.Option(help="Wall-clock time of the first frame, ISO 8601.", metavar="TIME")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the analyses to their end, and print the events.")
    ] = False,
    as_json: JsonRowsOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Upload videos for analysis, and show where to follow them.

    With --wait it exits 1 if a video fails, with the reason. Ctrl-C ends the waiting, not the analysis. With
    --json it prints the uploads; with --wait and --json the events.

    Example: `capstone submit video.mp4 --camera gate --external-id 84 --wait`
    """
    if external_id is not None and len(videos) > 1:
        raise typer.BadParameter("an external id names one video; submit them one by one")
    if recorded_at is not None:
        _iso_time(recorded_at)

    from capstone_dagster.clients import aws_client
    from capstone_dagster.submit import submit_video

    joined = join_local_stack(state)
    settings = read_settings()
    s3 = aws_client("s3")
    if joined is not None:
        from capstone_dagster.local.demo import warn_if_embedded

        warn_if_embedded(joined)
    submissions = []
    for path in videos:
        with terminal.progress(f"Uploading {path.name}") as report:
            submission = submit_video(
                path,
                s3,
                settings,
                external_id=external_id,
                camera=camera,
                recorded_at=recorded_at,
                sent=lambda fraction, name=path.name: report(f"Uploading {name}", fraction),  # type: ignore[misc]
            )
        submissions.append(submission)
        if not as_json:
            terminal.say(f"{path.name} → {submission.url}")
            terminal.say(f"  capstone status {submission.video_id}")
            if settings.ui_url is not None:
                page = video_page(settings.ui_url, submission.video_id)
                terminal.say(f"  {page}")
    if wait:
        follow(open_database(state), submissions, as_json=as_json)
    elif as_json:
        terminal.print_json([asdict(submission) for submission in submissions])


def status(
    videos: VideosArgument = None,
    as_json: JsonRowsOption = False,
    as_csv: CsvOption = False,
    limit: Annotated[int, typer.Option(min=1, help="Most rows, latest first.")] = 50,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the table again every 2 seconds, until Ctrl-C.")
    ] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show the state and progress of videos, what they wait for, and why they failed.

    A waiting video has a position in Dagster's queue; `capstone prioritize` moves it to the front.

    Example: `capstone status 84 --watch`
    """
    from capstone_dagster import terminal_tables as tables
    from capstone_dagster.storage.videos import RECORDING_COLUMNS

    form = terminal.format_of(as_json=as_json, as_csv=as_csv)
    if watch and form != "table":
        raise typer.BadParameter("--watch shows a table: leave --json and --csv out")
    database = open_database(state)
    if watch:

        def table() -> RenderableType:
            return tables.status_table(_status_rows(database, videos or [], limit, form))

        terminal.watch(table, pause_s=_POLL_S)
        return
    rows = _status_rows(database, videos or [], limit, form)
    if not rows and form == "table":
        terminal.err.print("No video was uploaded yet. Upload one with `capstone submit FILE`.")
    else:
        columns = [*_columns(database, "current_status"), *WAITING_COLUMNS, *RECORDING_COLUMNS]
        terminal.print_rows(rows, form, tables.status_table, columns=columns)


def _status_rows(
    database: Database, videos: Sequence[str], limit: int, form: terminal.Format
) -> list[dict[str, Any]]:
    from capstone_dagster.storage.video_status import current_status
    from capstone_dagster.storage.videos import with_recording_times

    rows = database.transact(current_status, *videos, limit=limit)
    rows, paused = with_waiting(rows, ask=form == "table")
    if paused and form == "table":
        terminal.note(
            f"New uploads stay in the queue: {paused} `capstone intake status` says more.", style="yellow"
        )
    if len(rows) < limit:
        _refuse_unknown(database, videos, rows)
    return database.transact(with_recording_times, rows)


def events(
    videos: VideosArgument = None,
    camera: CameraOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    label: LabelOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most events: the latest ones.", show_default="all")
    ] = None,
    as_json: JsonRowsOption = False,
    as_csv: CsvOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """List events in order of time: who was seen, when, with which score.

    With --since or --until only events count whose wall-clock time is known. A date means its first moment,
    so that `--since yesterday --until today` is the whole of yesterday.

    Example: `capstone events --camera gate --since yesterday --until today`
    """
    from capstone_dagster import terminal_tables as tables
    from capstone_dagster.storage.events import find_events
    from capstone_dagster.storage.videos import with_recording_times

    form = terminal.format_of(as_json=as_json, as_csv=as_csv)
    database = open_database(state)
    which = event_filter(videos or [], camera=camera, since=since, until=until, labels=label)
    rows = database.transact(find_events, which, limit=limit)
    if not rows:
        _refuse_unknown(database, videos or [], rows)
        _refuse_unknown_camera(database, camera)
    if not rows and form == "table":
        chosen = any(value is not None for value in (videos, camera, since, until, label))
        terminal.err.print("There are no such events." if chosen else "There are no events yet.")
        return
    if form == "table":
        rows = database.transact(with_recording_times, rows)
    columns = _columns(database, "current_events")
    terminal.print_rows(rows, form, tables.events_table, columns=columns)


def _refuse_unknown(database: Database, videos: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a name that no video has; `rows` name some that exist."""
    known = {row["video_id"] for row in rows} | {row["external_id"] for row in rows}
    for video in videos:
        if video not in known:
            find_video(database, video)


def _refuse_unknown_camera(database: Database, camera: str | None) -> None:
    from capstone_dagster.storage.video_status import current_status

    cameras = {row["camera"] for row in database.transact(current_status)} if camera is not None else set()
    if camera is not None and camera not in cameras:
        known = f"there are {', '.join(sorted(cameras))}" if cameras else "no video was uploaded yet"
        raise typer.BadParameter(f"no video of camera {camera!r} is known; {known}")


def analyze(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO", help="Video files.")],
    out: Annotated[Path, typer.Option("--out", help="Directory for Parquet files and pictures.")],
    model: Annotated[str | None, typer.Option(help="Model, as CAPSTONE_MODEL.")] = None,
    sample_fps: Annotated[
        float | None, typer.Option(min=0, help="Frames analysed per second of video; 0: every frame.")
    ] = None,
    motion_gate: Annotated[
        bool | None,
        typer.Option("--motion-gate/--no-motion-gate", help="Skip frames in which nothing changes."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:0.")] = None,
) -> None:
    """Analyse files on this machine, without Dagster, a database or AWS.

    Writes frames.parquet, detections.parquet, events.parquet, contact_sheet.jpg and thumbnails. Several files
    get a folder each; the model is loaded once, and a file that fails does not stop the others. Ends with one
    line of JSON for each file.

    Example: `capstone analyze video.mp4 --out results --sample-fps 5`
    """
    from capstone_dagster.local.analyze_file import FileAnalyzer, check_source, output_folders

    overrides = {"model": model, "sample_fps": sample_fps, "motion_gate": motion_gate, "device": device}
    settings = read_settings(**{name: value for name, value in overrides.items() if value is not None})
    if len(videos) == 1:
        check_source(videos[0])  # before the model, which takes seconds
    failed = 0
    with terminal.progress("Loading the model") as report:
        analyzer = FileAnalyzer(settings, report)
        for video, folder in zip(videos, output_folders(videos, out), strict=True):
            try:
                summary = analyzer.analyze(video, folder, report)
            except Exception as error:  # any error concerns this video alone
                if len(videos) == 1:
                    raise
                failed += 1
                message = sentence_of(error) or f"{type(error).__name__}: {error}"
                terminal.note(f"{video}: {message}")
                continue
            terminal.note(f"Wrote {folder}")
            print(json.dumps(asdict(summary)), flush=True)
    if failed:
        terminal.err.print(f"{failed} of {len(videos)} files could not be analysed.")
        raise typer.Exit(1)


def _columns(database: Database, view: str) -> list[str]:
    """The columns of a consumer view, in its order."""
    import sqlalchemy as sa

    from capstone_dagster.storage.schema import SCHEMA

    with database.transaction() as connection:
        return list(connection.execute(sa.text(f"SELECT * FROM {SCHEMA}.{view} LIMIT 0")).keys())


def _iso_time(text: str) -> None:
    from datetime import datetime

    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no time as in 2026-01-22T14:23:15+09:00") from error
