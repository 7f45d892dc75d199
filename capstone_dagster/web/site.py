"""What every page works with: the event store, the object store, templates in the browser's language."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit
from zoneinfo import ZoneInfo

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from capstone_dagster import terminal
from capstone_dagster.wall_clock import wall_clock
from capstone_dagster.web.language import language, translation
from capstone_dagster.web.media import Media

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from capstone_dagster.settings import Settings
    from capstone_dagster.storage.database import Database
    from capstone_dagster.storage.objects import ObjectStore

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Site:
    """What every page works with.

    Attributes:
        database: opened as the role `capstone_reader`.
        s3: signs addresses; nothing is read through it.
    """

    settings: Settings
    database: Database
    objects: ObjectStore
    s3: S3Client

    @cached_property
    def media(self) -> Media:
        return Media(self.s3, self.objects)

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.settings.timezone)

    @cached_property
    def hosts(self) -> set[str]:
        """The names that this server answers to."""
        public = urlsplit(self.settings.browse_url or "").hostname
        return {*LOOPBACK_NAMES, *([public] if public else [])}

    @cached_property
    def templates(self) -> jinja2.Environment:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "clock": terminal.clock,
            "settings": terminal.settings_text,
            "wall_clock": lambda moment: wall_clock(moment, self.zone),
            "segment": lambda text: quote(str(text), safe=""),
            "percent": lambda share: f"{round(100 * share)} %",
        }
        return environment

    def run_address(self, run_id: str | None) -> str | None:
        """The page of a run in Dagster's UI."""
        ui = self.settings.ui_url
        return f"{ui.rstrip('/')}/runs/{quote(run_id, safe='')}" if ui and run_id else None

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page in the language that the browser asks for."""
        spoken = language(request.headers.get("accept-language", ""))
        html = self.templates.get_template(template).render(
            t=translation(spoken),
            lang=spoken,
            path=request.url.path,
            run_address=self.run_address,
            observers=self.settings.observers,
            **values,
        )
        return HTMLResponse(html, status, {"Vary": "Accept-Language"})


def site_of(request: Request) -> Site:
    """The site that a request reached."""
    site: Site = request.app.state.site
    return site


def address(path: str, **query: Any) -> str:
    """A path with a query, without what is empty.

    >>> address("/", camera="문", label=None)
    '/?camera=%EB%AC%B8'
    """
    given = {name: value for name, value in query.items() if value not in (None, "", False)}
    return f"{path}?{urlencode(given)}" if given else path
