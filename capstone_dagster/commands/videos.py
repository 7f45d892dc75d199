"""`capstone submit`, `status`, `events` and `analyze`: videos in, events out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import find_video
from capstone_dagster.commands.joining import (
    DEFAULT_STATE,
    FormatOption,
    StateOption,
    join_local_stack,
    open_database,
    read_settings,
)
from capstone_dagster.commands.sentences import sentence_of
from capstone_dagster.commands.waiting import WAITING_COLUMNS, with_waiting

if TYPE_CHECKING:
    from capstone_dagster.storage.database import Database


def submit(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO", help="Video files.")],
    external_id: Annotated[
        str | None, typer.Option(help="The back end's own id of the video (one video only).")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="The camera; also the key's first folder.")] = None,
    recorded_at: Annotated[
        str | None, typer.Option(help="Wall-clock time of the first frame, ISO 8601.", metavar="TIME")
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Upload videos for analysis.

    Example: `capstone submit video.mp4 --camera gate --external-id 84`
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
        terminal.out.print(f"{path.name} → {submission.url}", markup=False, soft_wrap=True)
        terminal.out.print(f"  capstone status {submission.video_id}", markup=False, soft_wrap=True)


def status(
    video: Annotated[
        str | None, typer.Argument(metavar="VIDEO", help="A video's id or external id; all by default.")
    ] = None,
    form: FormatOption = "table",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows, latest first.")] = 50,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show the state and progress of videos, what they wait for, and why they failed.

    A waiting video has a position in Dagster's queue; `capstone prioritize` moves it to the front.

    Example: `capstone status 84`
    """
    from capstone_dagster.commands import tables
    from capstone_dagster.storage.video_status import current_status

    database = open_database(state)
    rows = database.transact(current_status, video, limit=limit)
    rows, paused = with_waiting(rows, ask=form == "table")
    if paused and form == "table":
        message = f"New uploads stay in the queue: {paused} `capstone intake status` says more."
        terminal.err.print(message, style="yellow", markup=False, soft_wrap=True)
    if not rows and video is not None:
        find_video(database, video)  # refuses it
    if not rows and form == "table":
        terminal.err.print("No video was uploaded yet. Upload one with `capstone submit FILE`.")
        return
    columns = [*_columns(database, "current_status"), *WAITING_COLUMNS]
    terminal.print_rows(rows, form, tables.status_table, columns=columns)


def events(
    video: Annotated[str | None, typer.Option("--video", help="A video's id or external id.")] = None,
    form: FormatOption = "table",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """List events: who was seen, when, with which score.

    Example: `capstone events --video 84 --format json`
    """
    from capstone_dagster.commands import tables
    from capstone_dagster.storage.events import current_events

    database = open_database(state)
    rows = database.transact(current_events, video)
    if not rows and video is not None:
        find_video(database, video)  # refuses an unknown one
    if not rows and form == "table":
        terminal.err.print("There are no events" + (f" of {video}." if video else " yet."), markup=False)
        return
    columns = _columns(database, "current_events")
    terminal.print_rows(rows, form, tables.events_table, columns=columns)


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
                terminal.err.print(f"{video}: {message}", markup=False, soft_wrap=True)
                continue
            terminal.err.print(f"Wrote {folder}", markup=False, soft_wrap=True)
            print(json.dumps(asdict(summary)), flush=True)
    if failed:
        terminal.err.print(f"{failed} of {len(videos)} files could not be analysed.", markup=False)
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
