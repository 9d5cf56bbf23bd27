"""The page at /playground: a chat that streams through our JavaScript client, from the server it talks to.

Static files and nothing else: the page uses the public API like any other.
"""

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import FileResponse

from tramontane.errors import NotFound

router = APIRouter(include_in_schema=False)

_PAGE: Final = Path(__file__).parent / "playground"
_PACKAGED: Final = _PAGE / "client"
#: The wheel brings the client along; in a checkout it is where it is written.
_CLIENT: Final = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "clients" / "js" / "src"
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


@router.get("/playground")
async def playground() -> FileResponse:
    """The page."""
    return _file(_PAGE, "index.html")


@router.get("/playground/{name}")
async def playground_file(name: str) -> FileResponse:
    """Its style and its script."""
    return _file(_PAGE, name)


@router.get("/playground/client/{name}")
async def playground_client(name: str) -> FileResponse:
    """A module of the JavaScript client."""
    return _file(_CLIENT, name)


def _file(directory: Path, name: str) -> FileResponse:
    # A name is one segment of a path, and one of those that are there: nothing can be reached from it.
    path = next((path for path in directory.iterdir() if path.name == name and path.suffix in _TYPES), None)
    if path is None:
        raise NotFound(f"no such file: {name[:64]!r}")
    return FileResponse(path, headers=_HEADERS, media_type=_TYPES[path.suffix])
