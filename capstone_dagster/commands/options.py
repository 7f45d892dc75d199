"""Arguments and options that several commands share, and the filter that those for events make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster.commands.moments import HOW_TO_TYPE, checked, read_moment

if TYPE_CHECKING:
    from capstone_dagster.storage.events import EventFilter

DEFAULT_STATE = Path(__file__).resolve().parents[2] / ".capstone"
StateOption = Annotated[
    Path,
    typer.Option(
        "--state", help="Where the local stack keeps everything it remembers.", show_default=".capstone"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonRowsOption = Annotated[bool, typer.Option("--json", help="Print a JSON list of objects.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")]
VideoArgument = Annotated[str, typer.Argument(metavar="VIDEO", help="A video's id or external id.")]
VideosArgument = Annotated[
    list[str] | None, typer.Argument(metavar="VIDEO", help="Ids or external ids; all videos by default.")
]
CameraOption = Annotated[str | None, typer.Option("--camera", help="Only events of this camera.")]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        callback=checked,
        help=f"Only events that began then or later: {HOW_TO_TYPE}.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", callback=checked, help="Only events that began before."),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", help="Only events of this label, as in person; give it again for several."),
]
ByOption = Annotated[str | None, typer.Option("--by", help="Who orders it.", show_default="this user")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
AnalysisOption = Annotated[
    str | None,
    typer.Option("--analysis", help="An analysis's id or its beginning; by default the current one."),
]


def event_filter(
    videos: Sequence[str],
    *,
    camera: str | None,
    since: str | None,
    until: str | None,
    labels: Sequence[str] | None,
) -> EventFilter:
    """What the arguments choose; the stack must be joined, because the settings name the time zone."""
    from capstone_dagster.storage.events import EventFilter

    return EventFilter(
        videos=tuple(videos),
        labels=tuple(labels or ()),
        camera=camera,
        since=read_moment(since),
        until=read_moment(until),
    )
