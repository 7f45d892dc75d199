"""Uploads on their way, and new ones: a browser sends a file to S3 itself, by an address signed for it."""

from __future__ import annotations

import json
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from capstone_dagster.failures.classes import POLICIES, FailureClass
from capstone_dagster.settings import ConfigurationError
from capstone_dagster.submit import NotSubmitted, destination
from capstone_dagster.web import reading
from capstone_dagster.web.site import site_of

# What S3 takes in one request.
LARGEST_BYTES = 5 * 1024**3
_NAME_AT_MOST = 200
_REQUEST_AT_MOST_BYTES = 10_000


def uploads_page(request: Request) -> Response:
    """`/uploads`: what waits, runs and failed; with `part`, only what the page asks for again and again."""
    site = site_of(request)
    with site.database.transaction() as connection:
        waiting, total = reading.uploads_on_their_way(connection)
        failed = reading.failed_uploads(connection)
        cameras = reading.cameras(connection)
    remedies = {str(failure): policy.remedy for failure, policy in POLICIES.items()}
    unknown = remedies[FailureClass.INTERNAL]
    return site.page(
        request,
        "uploads_now.html.j2" if request.query_params.get("part") else "uploads.html.j2",
        waiting=waiting,
        total=total,
        failed=[{**row, "remedy": remedies.get(row["failure_class"], unknown)} for row in failed],
        cameras=cameras,
        suffixes=",".join(site.settings.key_suffixes),
        largest_bytes=LARGEST_BYTES,
    )


async def begin(request: Request) -> Response:
    """`POST /uploads` with a file's name and camera: where to put it, and where to follow it."""
    # The file goes elsewhere: what is longer, or of unknown length, is no request for an upload.
    if not 0 < int(request.headers.get("content-length", 0)) <= _REQUEST_AT_MOST_BYTES:
        return JSONResponse({"error": "Expected a short request."}, 413)
    try:
        asked = json.loads(await request.body())
        name, camera = _text(asked["name"]), _text(asked.get("camera") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return JSONResponse({"error": "Expected a file's name, and a camera without slashes."}, 400)
    return await run_in_threadpool(_begin, request, name, camera or None)


def _begin(request: Request, name: str, camera: str | None) -> Response:
    site = site_of(request)
    try:
        target = destination(name, site.settings, camera=camera)
    except (NotSubmitted, ConfigurationError) as error:
        return JSONResponse({"error": str(error)}, 400)
    with site.database.transaction() as connection:
        earlier = reading.status_of_video(connection, target.video_id)
    return JSONResponse(
        {
            "put": site.media.upload_address(target),
            "headers": {f"x-amz-meta-{name}": value for name, value in target.metadata.items()},
            "video_id": target.video_id,
            # An earlier upload of this key is not the one to be followed.
            "earlier": earlier["upload_id"] if earlier else None,
        }
    )


def state(request: Request) -> Response:
    """`/uploads/…`: the state of a video's latest upload; `received` before intake has seen it."""
    site = site_of(request)
    with site.database.transaction() as connection:
        row = reading.status_of_video(connection, request.path_params["video_id"])
    if row is None or row["upload_id"] == request.query_params.get("earlier"):
        return JSONResponse({"state": None})
    names = ("state", "progress", "message", "failure_class")
    answer: dict[str, Any] = {name: row[name] for name in names}
    return JSONResponse(answer)


def _text(value: str) -> str:
    """A name that is one part of a key.

    Raises:
        ValueError: it is not.
    """
    text = value.strip()
    if (
        "/" in text
        or "\\" in text
        or not text.isprintable()
        or len(text) > _NAME_AT_MOST
        or text in (".", "..")
    ):
        raise ValueError(f"{value!r} is no name.")
    return text
