"""The ASGI application: routes, problem documents, CORS."""

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import tramontane
from tramontane.api import problems
from tramontane.api.guard import Guard
from tramontane.api.routes import router
from tramontane.api.schemas import COMPONENTS
from tramontane.app import App


class _API(FastAPI):
    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document["components"]["schemas"] |= COMPONENTS
        return document


def create_api(app: App) -> FastAPI:
    """The HTTP face of a running app."""
    api = _API(title="Tramontane", version=tramontane.__version__, redoc_url=None)
    api.state.app = app
    api.include_router(router)
    problems.install(api)
    if app.settings.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(app.settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"],
            expose_headers=["Content-Location", "Location", "Retry-After", "X-Job-Id", "X-Stream-Retention-Seconds"],
        )
    api.add_middleware(Guard, hosts=app.settings.allowed_hosts, origins=app.settings.cors_origins)
    return api
