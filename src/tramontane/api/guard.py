"""Who may call a server that listens on loopback: programs of this machine, but not every page in its browser.

A page of any site can make a browser POST to 127.0.0.1, and, by a name that changes its address, even read from it.
Both show: the first in `Origin`, the second in `Host`. On other addresses every call needs a key, which no such page
has; there a server goes by any name, and pages are refused that it has not served itself.
"""

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tramontane.api.problems import response_to
from tramontane.app import App
from tramontane.errors import NotAllowed

#: For a server that asks everybody for a key.
ANY_HOST: Final = ("*",)

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Guard:
    """ASGI middleware that refuses foreign host names and origins."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], origins: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = None if hosts == ANY_HOST else _LOOPBACK | set(hosts)
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Headers(scope=scope))):
            await response_to(refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> NotAllowed | None:
        host = _name(f"//{headers.get('host', '')}")
        if self._hosts is not None and host not in self._hosts:
            return NotAllowed("this host name is not one of ours: TRAMONTANE_ALLOWED_HOSTS names those of a proxy")
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return None
        name = _name(origin)
        if name is not None and name in (self._hosts or {host}):
            return None
        return NotAllowed("pages of this origin may not call this server: TRAMONTANE_CORS_ORIGINS names those that may")


def close_to_others(app: App) -> tuple[str, ...]:
    """The names that a server of this app goes by. Where others can reach it, it asks for keys from now on."""
    if app.settings.behind_proxy or not app.settings.on_loopback:
        app.authentication.close()
    return app.settings.allowed_hosts if app.settings.on_loopback else ANY_HOST


def _name(url: str) -> str | None:
    """The host name in a URL; None without one, and for what is no URL."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
