"""`capstone watch`: what people want to hear of."""

from __future__ import annotations

import json
import re
from datetime import time
from typing import Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.joining import open_database, read_settings
from capstone_dagster.commands.options import DEFAULT_STATE, JsonRowsOption, StateOption

app = typer.Typer(no_args_is_help=True, help="Choose the events that people are notified of.")

Name = Annotated[str, typer.Argument(help="Name of the watch.", metavar="NAME")]
_HOUR = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


def _hour(text: str | None) -> str | None:
    if text is not None and not _HOUR.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no time of day; expected one as in 22:00")
    return text


@app.command("add")
def add(
    name: Name,
    camera: Annotated[str | None, typer.Option(help="Only events of this camera.")] = None,
    zone: Annotated[
        str | None, typer.Option(help="Only events that were in this zone, or crossed this line.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Only events of this label.")] = None,
    from_time: Annotated[
        str | None,
        typer.Option("--from", metavar="HH:MM", callback=_hour, help="Only from this time of day on."),
    ] = None,
    to_time: Annotated[
        str | None,
        typer.Option("--to", metavar="HH:MM", callback=_hour, help="Only before this time of day."),
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Notify people of such events, or change the watch of this name.

    Each upload's first analysis makes one notice a watch, with its pictures. CAPSTONE_MESSAGE_URLS receives
    it, and CAPSTONE_NOTICE_TOPIC_ARN as `video.watched`. Times of day are in CAPSTONE_TIMEZONE, and may go
    over midnight; with them, only events whose wall-clock time is known match.

    Example: `capstone watch add night --camera gate --zone door --from 22:00 --to 06:00`
    """
    from capstone_dagster.storage import watches

    if (from_time is None) != (to_time is None):
        raise typer.BadParameter("--from and --to belong together")
    row = {"name": name, "camera": camera, "zone": zone, "label": label}
    row |= {"from_time": from_time, "to_time": to_time}
    database = open_database(state)
    database.transact(watches.set_watch, row | {"timezone": read_settings().timezone})
    terminal.say(f"{name} is watched.")


@app.command("list")
def show(as_json: JsonRowsOption = False, state: StateOption = DEFAULT_STATE) -> None:
    """List the watches.

    Example: `capstone watch list`
    """
    from capstone_dagster.storage import watches

    rows = open_database(state).transact(watches.all_watches)
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, default=time.isoformat))
    elif not rows:
        terminal.say("Nothing is watched.")
    for row in [] if as_json else rows:
        named = [f"{key} {row[key]}" for key in ("camera", "zone", "label") if row[key] is not None]
        if row["from_time"] is not None:
            named.append(f"{row['from_time']:%H:%M} to {row['to_time']:%H:%M} {row['timezone']}")
        terminal.say(f"{row['name']}: {', '.join(named) or 'everything'}")


@app.command("remove")
def remove(name: Name, state: StateOption = DEFAULT_STATE) -> None:
    """Remove a watch.

    Example: `capstone watch remove night`
    """
    from capstone_dagster.storage import watches

    if not open_database(state).transact(watches.remove_watch, name):
        raise typer.BadParameter(f"no watch is called {name!r}; `capstone watch list` shows them")
    terminal.say(f"{name} is no longer watched.")
