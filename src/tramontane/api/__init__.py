"""The HTTP face: routes, their shapes in and out, and the server around them."""

from tramontane.api.application import create_api
from tramontane.api.server import serving

__all__ = ["create_api", "serving"]
