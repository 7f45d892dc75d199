"""`capstone-webserver`: Dagster's webserver, which accepts changes only from its own pages and from programs.

Dagster's webserver has no login, and accepts changes from any web page that a user has open, under any host
name. Here a request must name this server as its host, must not come from another page, and changes nothing
by GET. Who can reach the server at all is decided by the network.

It also serves `/metrics` to Prometheus, and `/health`: it runs wherever the system does and has Dagster's
storage open already. A process of its own would import Dagster once more to answer a few requests a minute.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dagster_webserver.app
from dagster_webserver.cli import main as serve
from dagster_webserver.webserver import DagsterWebserver
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from capstone_dagster.metrics.exposition import HEALTH_PATH, Exposed, open_exposition
from capstone_dagster.settings import read_settings

# Load balancers and health checks ask by an address; these say versions, and what works, and nothing else.
_FOR_ALL = ("/server_info", HEALTH_PATH)
_CLOSED = 1008  # WebSocket: policy violation


class Guard:
    """ASGI middleware that refuses what no page of this server and no program of its users sends.

    Args:
        hosts: names by which this server is asked, without ports.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if why is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _CLOSED, "reason": why})
        else:
            await PlainTextResponse(f"{why}\n", status_code=403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        """Why a request is refused; None if it is not."""
        path, method, headers = scope["path"], scope.get("method", "GET"), Headers(scope=scope)
        if path in _FOR_ALL and method in ("GET", "HEAD"):
            return None
        host = headers.get("host", "")
        if _name(f"//{host}") not in self._hosts:
            return f"This server does not serve the host {host!r}. Set CAPSTONE_UI_URL to its address."
        changes = scope["type"] == "websocket" or method not in ("GET", "HEAD")
        origin = headers.get("origin")
        if changes and origin is not None and urlsplit(origin).netloc != host:
            return f"Pages of {origin!r} may not send requests to this server."
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if path.endswith("/graphql") and scope["type"] == "http" and "query" in query:
            return "Send GraphQL by POST, with the query in the body."
        return None


class GuardedWebserver(DagsterWebserver[Any, Any]):
    """Dagster's webserver behind the guard, with `/metrics` and `/health`."""

    def build_middleware(self) -> list[Middleware]:
        settings = read_settings()
        url = settings.ui_url
        hosts = {"localhost", "127.0.0.1", "::1", *([_name(url)] if url else ())}
        exposition = open_exposition(self._process_context.instance, settings)
        return [
            Middleware(Guard, hosts=hosts),
            Middleware(Exposed, exposition=exposition),
            *super().build_middleware(),
        ]


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def main() -> None:
    """Dagster's own command line, with the guard."""
    vars(dagster_webserver.app)["DagsterWebserver"] = GuardedWebserver
    serve()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
