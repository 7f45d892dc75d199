"""The zones of a camera, drawn on a frame of its latest video.

The page writes nothing, because these pages only read: it gives a file, and the command that sets it.
"""

from __future__ import annotations

import json
import shlex

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from capstone_dagster.web import reading
from capstone_dagster.web.reading import Row
from capstone_dagster.web.site import site_of

_FILE = "zones.json"


def zones_page(request: Request) -> Response:
    """`/cameras/…/zones`: what is set, to look at and to change."""
    site = site_of(request)
    camera = request.path_params["camera"]
    with site.database.transaction() as connection:
        video = reading.latest_video(connection, camera)
        zones = [row for row in reading.zones(connection) if row["camera"] == camera]
    if video is None:
        raise HTTPException(404, "This camera has no analysed video that is kept.")
    return site.page(
        request,
        "zones.html.j2",
        camera=camera,
        video=video,
        file=_FILE,
        content=as_text(zones),
        command=f"capstone zones set {shlex.quote(camera)} {_FILE}",
        again=f"capstone reanalyze --camera {shlex.quote(camera)} --events-only",
    )


def as_text(zones: list[Row]) -> str:
    """The file that `capstone zones set` takes, a line for each zone."""
    lines = [
        json.dumps(
            {"name": row["name"], row["kind"]: row["points"], "anchor": row["anchor"]}, ensure_ascii=False
        )
        for row in zones
    ]
    return "[\n" + ",\n".join(lines) + "\n]"
