"""Refuses requests that other sites or other names bring here, and tells browsers what a page may load."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEALTH = "/health"
_SAFE_METHODS = {"GET", "HEAD"}


class Protection:
    """ASGI middleware.

    - Host names that are not ours are refused: a foreign name that resolves to this address (DNS rebinding)
      must not read faces.
    - Only pages of this origin may send anything but GET, and only they may embed or fetch what is here.
      Following a link from elsewhere is allowed.
    - Scripts, styles and frames come from this origin alone, and nothing is inline: a name that looks like
      markup stays a name.

    Args:
        hosts: the names of this server.
        media: other origins that pictures and videos come from and uploads go to.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], media: Collection[str]) -> None:
        self._app = app
        self._hosts = set(hosts)
        elsewhere = " ".join(["'self'", *sorted(media)])
        self._headers = {
            "Content-Security-Policy": "; ".join(
                [
                    "default-src 'none'",
                    "script-src 'self'",
                    "style-src 'self'",
                    *(f"{kind} {elsewhere}" for kind in ("img-src", "media-src", "connect-src")),
                    "form-action 'self'",
                    "base-uri 'none'",
                    "frame-ancestors 'none'",
                ]
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A load balancer asks for its health by its address, whatever its name.
        if scope["type"] != "http" or scope["path"] == HEALTH:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["method"], Headers(scope=scope))

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if refusal is None:
            await self._app(scope, receive, send_protected)
        else:
            await PlainTextResponse(refusal, status_code=403)(scope, receive, send_protected)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if urlsplit(f"//{host}").hostname not in self._hosts:
            return "This server has another name: CAPSTONE_BROWSE_URL should be its address."
        if method in _SAFE_METHODS:
            fetched = headers.get("sec-fetch-mode", "navigate") != "navigate"
            if fetched and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                return "Only pages of this server may load this."
        elif urlsplit(headers.get("origin", "")).netloc != host:
            return "Only pages of this server may send this."
        return None
