"""Listening sockets, made by hand: bound and listening before anything else is told of them.

Two sockets may be bound to one port while neither listens; the later `listen` then fails, and uvloop keeps that to
itself. So we listen first, and a taken port is one clear line.
"""

import socket

from tramontane.errors import ConfigurationError


def listen_on(host: str, port: int, *, remedy: str = "choose another with --port or TRAMONTANE_PORT") -> socket.socket:
    """A socket that listens there; 0 is any free port. Raises ConfigurationError, which ends in the remedy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio sets TCP_NODELAY on no other, and each small write would wait 40 ms for an ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # What a slow reader has not taken waits here and not in our memory; the default would hide megabytes.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}; {remedy}") from None
    bound.setblocking(False)
    return bound


def url_of(bound: socket.socket) -> str:
    """The address that clients use."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
