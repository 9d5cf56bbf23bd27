"""The HTTP face: routes, their shapes in and out, and the server around them."""

from tramontane.api.application import create_api
from tramontane.api.server import bind, serving, url_of

__all__ = ["bind", "create_api", "serving", "url_of"]
