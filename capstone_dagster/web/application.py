"""The web application: which address is answered by what, and how failures are shown."""

from __future__ import annotations

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from capstone_dagster.failures.classes import sentence
from capstone_dagster.storage.errors import ObjectNotFound, StorageError
from capstone_dagster.web import cameras, events, uploads, videos
from capstone_dagster.web.protection import HEALTH, Protection
from capstone_dagster.web.site import Site


def create_app(site: Site) -> Starlette:
    """The application; connects to nothing before the first request."""

    async def failed(request: Request, error: Exception) -> Response:
        status, text = _explained(error)
        return site.page(request, "error.html.j2", status=status, sentence=text)

    app = Starlette(
        routes=[
            Route("/", events.gallery_page),
            Route("/events/{event_id}", events.event_page),
            Route("/events/{event_id}/picture", events.picture),
            Route("/videos/{video_id}", videos.video_page),
            Route("/videos/{video_id}/media", videos.media),
            Route("/videos/{video_id}/boxes", videos.boxes),
            Route("/videos/{video_id}/compare", videos.comparison_page),
            Route("/videos/{video_id}/download/{form}", videos.download),
            Route("/cameras/{camera:path}/zones", cameras.zones_page),
            Route("/uploads", uploads.uploads_page),
            Route("/uploads", uploads.begin, methods=["POST"]),
            Route("/uploads/{video_id}", uploads.state),
            Route(HEALTH, lambda request: PlainTextResponse("ok")),
            Mount("/static", StaticFiles(packages=[(__package__, "static")])),
        ],
        middleware=[
            Middleware(Protection, hosts=site.hosts, media=site.media.origins(site.settings.raw_bucket))
        ],
        exception_handlers={HTTPException: failed, StorageError: failed},
    )
    app.state.site = site
    return app


def _explained(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    if isinstance(error, ObjectNotFound):
        return 404, "This file has been deleted."
    logging.getLogger("capstone.web").warning(sentence(error))
    return 503, "The event store or the object store does not answer. Try again in a minute."
