"""`capstone export`: events and detections as files that other tools read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import current_of, find_analyses, find_analysis, find_video
from capstone_dagster.commands.joining import object_store, open_database
from capstone_dagster.commands.options import (
    DEFAULT_STATE,
    AnalysisOption,
    CameraOption,
    LabelOption,
    SinceOption,
    StateOption,
    UntilOption,
    VideoArgument,
    VideosArgument,
    event_filter,
)
from capstone_dagster.commands.sections import Sections
from capstone_dagster.commands.writing import appearing

OutOption = Annotated[
    Path,
    typer.Option("--out", help="The file to write, in place of one there; it appears when it is complete."),
]

app = typer.Typer(
    cls=Sections, no_args_is_help=True, help="Write events and detections to files that other tools read."
)


@app.command()
def events(
    out: OutOption,
    form: Annotated[
        Literal["csv", "parquet", "json", "spreadsheet"], typer.Option("--format", help="What to write.")
    ] = "csv",
    videos: VideosArgument = None,
    camera: CameraOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    label: LabelOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Write the current events, with the columns of the view current_events.

    CSV has a header, and boxes as JSON; `spreadsheet` is CSV in which no text is a formula; JSON is one list
    of objects; Parquet has lists for boxes and timestamps in UTC. With --since or --until an event counts
    whose wall-clock time is known. Ordered by camera and time, as of one moment, whatever is published
    meanwhile.

    Example: `capstone export events --camera gate --since 2026-01-01 --out january.csv`
    """
    from capstone_dagster.storage.event_files import WRITERS
    from capstone_dagster.storage.events import stream_events

    database = open_database(state)
    named = [find_video(database, video) for video in videos or []]
    which = event_filter(named, camera=camera, since=since, until=until, labels=label)
    with appearing(out) as partial, database.transaction() as connection:
        rows = WRITERS[form](partial, *stream_events(connection, which))
    terminal.note(f"Wrote {rows} events to {out}")


@app.command()
def detections(
    video: VideoArgument,
    out: OutOption,
    form: Annotated[Literal["coco", "mot"], typer.Option("--format", help="What to write.")] = "coco",
    analysis: AnalysisOption = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            help="Only this label's; may be repeated. By default all, for MOT, which has no labels, person.",
        ),
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Write every single detection of a video as COCO's JSON or as a MOTChallenge result.

    COCO: an image is an analysed frame (id: its place in the video, from 1), boxes are x, y, width, height in
    pixels, and annotations have `score` and `track_id` besides. MOT: lines of frame (from 1), id, left, top,
    width, height, confidence, -1, -1, -1, of tracked detections. Both in pixels of the upright source.

    Example: `capstone export detections 84 --format mot --out mot.txt`
    """
    from capstone_dagster.analysis.formats import write_coco, write_mot
    from capstone_dagster.assets.steps.detection import read_summary

    database = open_database(state)
    video_id = find_video(database, video)
    found = find_analyses(database, video_id)
    chosen = find_analysis(found, analysis) if analysis else current_of(found)
    if chosen is None:
        raise typer.BadParameter(f"{video_id} has no current analysis: name one with --analysis")
    objects = object_store()
    prefix = f"detections/{chosen['detection_id']}/"
    labels = label or (["person"] if form == "mot" else None)
    with tempfile.TemporaryDirectory(prefix="capstone-") as folder, appearing(out) as partial:
        table = Path(folder) / "detections.parquet"
        objects.get_file(prefix + table.name, table)
        with partial.open("w", encoding="utf-8") as target:
            if form == "mot":
                written = write_mot(table, target, labels=labels)
            else:
                frames = Path(folder) / "frames.parquet"
                objects.get_file(prefix + frames.name, frames)
                size = read_summary(objects, chosen["detection_id"])
                written = write_coco(
                    table, frames, target, width=size.width, height=size.height, video=video_id, labels=labels
                )
    terminal.note(f"Wrote {written} detections to {out}")
