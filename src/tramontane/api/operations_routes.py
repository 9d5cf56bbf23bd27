"""The routes of those who operate the fleet: signs of life for supervisors and balancers, figures for Prometheus."""

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from tramontane.api import problems
from tramontane.api.authentication import Authenticated
from tramontane.api.guard import Guard, close_to_others
from tramontane.api.parameters import NO_UNKNOWN
from tramontane.api.requests import app_of, caller_of, json_answer
from tramontane.app import App
from tramontane.models import Scope

router = APIRouter()


@router.get("/healthz")
async def healthz() -> Response:
    """The process runs."""
    return json_answer({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """The process may be given work: its database answers and has tables that it knows, and it is not about to end."""
    app = app_of(request)
    await app.operations.check()
    return json_answer({"status": "ready", "worker": app.worker is not None})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The figures of this process, and of the fleet as the database has them, in Prometheus' text format."""
    caller_of(request, Scope.OPERATOR)
    page = await app_of(request).operations.page()
    return Response(page, headers={"content-type": CONTENT_TYPE_LATEST, "cache-control": "no-store"})


def create_operations_api(app: App) -> FastAPI:
    """These routes alone: the face of a worker without API."""
    api = FastAPI(title="Tramontane worker", openapi_url=None, dependencies=[NO_UNKNOWN])
    api.state.app = app
    api.include_router(router)
    problems.install(api)
    api.add_middleware(Authenticated, authentication=app.authentication)
    api.add_middleware(Guard, hosts=close_to_others(app), origins=())
    return api
