"""The ASGI application: routes, problem documents, CORS."""

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from tramontane.api import problems
from tramontane.api.authentication import Authenticated
from tramontane.api.bulk_routes import router as bulk
from tramontane.api.description import complete
from tramontane.api.guard import Guard, close_to_others
from tramontane.api.limits_routes import router as limits
from tramontane.api.operations_routes import router as operations
from tramontane.api.parameters import NO_UNKNOWN
from tramontane.api.pauses_routes import router as pauses
from tramontane.api.playground import router as playground
from tramontane.api.responses import AFTERWARDS
from tramontane.api.routes import router
from tramontane.api.schedules_routes import router as schedules
from tramontane.api.schemas import COMPONENTS
from tramontane.api.webhook_history import router as webhook_history
from tramontane.api.webhook_routes import router as webhooks
from tramontane.api.webhook_schemas import COMPONENTS as WEBHOOK_COMPONENTS
from tramontane.app import App


class _API(FastAPI):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        afterwards: list[Callable[[Receive, Send], Awaitable[None]]] = []
        scope[AFTERWARDS] = afterwards
        await super().__call__(scope, receive, send)
        for go_on in afterwards:
            await go_on(receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["schemas"] |= COMPONENTS | WEBHOOK_COMPONENTS
            self.openapi_schema = complete(document)
        return self.openapi_schema


def create_api(app: App) -> FastAPI:
    """The HTTP face of a running app."""
    api = _API(title="Tramontane", version=version("tramontane"), redoc_url=None, dependencies=[NO_UNKNOWN])
    api.state.app = app
    for routes in (bulk, router, webhooks, webhook_history, limits, pauses, schedules, playground, operations):
        api.include_router(routes)
    problems.install(api)
    api.add_middleware(Authenticated, authentication=app.authentication)
    if app.settings.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(app.settings.cors_origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "Idempotency-Key",
                "If-None-Match",
                "Last-Event-ID",
                "Prefer",
                "X-API-Key",
                "X-Tramontane-Tenant",
            ],
            expose_headers=[
                "Content-Location",
                "ETag",
                "Idempotency-Replayed",
                "Location",
                "Preference-Applied",
                "Retry-After",
                "X-Budget-Used",
                "X-Job-Id",
                "X-Stream-Retention-Seconds",
            ],
        )
    api.add_middleware(Guard, hosts=close_to_others(app), origins=app.settings.cors_origins)
    return api
