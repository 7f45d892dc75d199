"""How `capstone events` and `export events` choose events: one set of arguments, one filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster.commands.moments import HOW_TO_TYPE, checked, read_moment

if TYPE_CHECKING:
    from capstone_dagster.storage.events import EventFilter

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
