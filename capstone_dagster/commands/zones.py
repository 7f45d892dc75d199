"""`capstone zones`: areas and lines in the pictures of cameras, which events then refer to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.joining import open_database
from capstone_dagster.commands.options import DEFAULT_STATE, JsonRowsOption, StateOption

app = typer.Typer(
    no_args_is_help=True,
    help="Set and show the zones and lines of cameras.",
)

Camera = Annotated[str, typer.Argument(help="Name of the camera.", metavar="CAMERA")]


@app.command("set")
def set_zones(
    camera: Camera,
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON: a list of objects with name, `polygon` or `line`, and perhaps anchor.",
            metavar="FILE.json",
        ),
    ],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Replace the zones and lines of a camera; an empty list deletes them.

    Points are fractions of the picture's width and height, from its upper left corner. The page Zones of
    `capstone browse` draws them on a frame. Later analyses apply them; `capstone reanalyze --events-only`
    applies them to earlier videos, without a GPU.

    Example: `capstone zones set gate gate.json`
    """
    from capstone_dagster.storage import zones

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None
    rows = read_zones(text)
    open_database(state).transact(zones.set_zones, camera, rows)
    terminal.say(f"{camera}: {len(rows)} zones" if rows else f"{camera}: no zones")


@app.command("show")
def show(
    camera: Annotated[str | None, typer.Argument(help="Only of this camera.", metavar="CAMERA")] = None,
    as_json: JsonRowsOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """List the zones and lines of cameras; with --json, as `set` takes them.

    Example: `capstone zones show gate --json`
    """
    from capstone_dagster.storage import zones

    rows = open_database(state).transact(zones.all_zones)
    rows = [row for row in rows if camera in (None, row["camera"])]
    if as_json:
        written = [{"camera": row["camera"], **as_file(row)} for row in rows]
        typer.echo(json.dumps(written, ensure_ascii=False, indent=1))
    elif not rows:
        terminal.say("There are no zones.")
    for row in [] if as_json else rows:
        points = " ".join(f"{x:.3f},{y:.3f}" for x, y in row["points"])
        terminal.say(f"{row['camera']}  {row['name']}  {row['kind']}  {points}")


def read_zones(text: str) -> list[dict[str, Any]]:
    """Rows of the table `zones`, from a file's text.

    Raises:
        typer.BadParameter: it is no such list.
        InvalidAnalysisSettings: a zone is not as described.
    """
    from dataclasses import asdict

    from capstone_dagster.analysis import FEET, Zone

    expected = 'expected [{"name": "door", "polygon": [[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]}, ...]'
    read: list[tuple[str, Literal["polygon", "line"], tuple[tuple[float, float], ...], str]] = []
    try:
        for each in json.loads(text):
            kind: Literal["polygon", "line"] = "line" if "line" in each else "polygon"
            if set(each) - {"camera"} - {"name", kind, "anchor"}:
                raise ValueError
            points = tuple((float(x), float(y)) for x, y in each[kind])
            read.append((str(each["name"]), kind, points, str(each.get("anchor", FEET))))
    except (ValueError, TypeError, KeyError):
        raise typer.BadParameter(f"The file holds no zones; {expected}.") from None
    found = [Zone(*values) for values in read]
    if len({zone.name for zone in found}) < len(found):
        raise typer.BadParameter("Two zones have the same name.")
    return [asdict(zone) for zone in found]


def as_file(row: Any) -> dict[str, Any]:
    """A row as `read_zones` reads it."""
    return {"name": row["name"], row["kind"]: row["points"], "anchor": row["anchor"]}
