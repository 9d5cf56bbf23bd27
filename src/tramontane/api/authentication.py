"""The door: every request has its caller told from its key before any route sees it.

What is open to everybody is listed here; a route that is forgotten needs a key.
"""

import re
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tramontane.api.problems import response_to
from tramontane.authentication import TENANT_HEADER, Authentication
from tramontane.errors import TramontaneError
from tramontane.ids import utc_now

#: Where routes find who asks; see `requests.caller_of`.
CALLER: Final = "tramontane.caller"
#: Signs of life, what the API looks like, and a page whose calls bring the key.
PUBLIC: Final = frozenset(
    {"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/playground", "/favicon.ico"}
)

_PUBLIC_FILES: Final = "/playground/"
_EVENTS: Final = re.compile(r"/api/jobs/[^/]+/events")
_BEARER: Final = re.compile(r"bearer +(\S+) *", re.IGNORECASE)


class Authenticated:
    """ASGI middleware that puts the caller into the scope of a request, or refuses it."""

    def __init__(self, app: ASGIApp, authentication: Authentication) -> None:
        self._app = app
        self._authentication = authentication

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_public(scope["path"]):
            headers = Headers(scope=scope)
            key = _key(headers)
            if key is not None or not _has_ticket(scope):
                client = scope.get("client")
                try:
                    scope[CALLER] = await self._authentication.caller(
                        key,
                        tenant=headers.get(TENANT_HEADER),
                        address=client[0] if client else "",
                        now=utc_now(),
                    )
                except TramontaneError as error:
                    await response_to(error)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(_PUBLIC_FILES)


def _key(headers: Headers) -> str | None:
    """The key of a request. Another kind of `Authorization` is somebody else's, such as a proxy's."""
    bearer = _BEARER.fullmatch(headers.get("authorization", ""))
    return bearer[1] if bearer else headers.get("x-api-key")


def _has_ticket(scope: Scope) -> bool:
    """A ticket is checked by the one route that takes it, which asks for no caller then."""
    asks = scope["method"] in ("GET", "HEAD") and _EVENTS.fullmatch(scope["path"])
    return bool(asks and "ticket" in parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True))
