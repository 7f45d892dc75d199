"""`capstone preview`: an annotated copy of a video that plays in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import find_analyses, find_analysis, find_video
from capstone_dagster.commands.joining import open_database, read_settings
from capstone_dagster.commands.options import DEFAULT_STATE, AnalysisOption, StateOption, VideoArgument
from capstone_dagster.commands.writing import check_file


def preview(
    video: VideoArgument,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also copy it to this file.", metavar="FILE.mp4")
    ] = None,
    analysis: AnalysisOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Render a video with boxes, track numbers and times, as H.264 that plays in any browser.

    It uses stored detections and the uploaded video, and no model; it takes as long as decoding and encoding.
    It is rendered once and stored beside the events, as `analyses/<analysis id>/preview.mp4`.

    Example: `capstone preview 84 --out 84.mp4`
    """
    if out is not None:
        check_file(out)
    database = open_database(state)
    video_id = find_video(database, video)
    found = find_analyses(database, video_id)
    analysis_id = None if analysis is None else find_analysis(found, analysis)["analysis_id"]

    # Imports Dagster, so it comes after the checks of arguments.
    from capstone_dagster.assets.steps.previews import store_preview
    from capstone_dagster.services import Services

    services = Services(read_settings())
    with terminal.progress("Rendering the preview") as report:
        stored = store_preview(
            video_id,
            services,
            analysis_id=analysis_id,
            progress=lambda fraction: report("Rendering the preview", fraction),
        )
    outcome = "Rendered" if stored.made else "Was there already:"
    terminal.say(f"{outcome} {services.objects.url(stored.key)}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        services.objects.get_file(stored.key, out)
        terminal.note(f"Wrote {out}")
