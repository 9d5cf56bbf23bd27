"""Everything that can go wrong between us and a receiver, mapped once to an ErrorClass and a line for people.

The lines are ours. An exception's own words stay inside: they may quote the URL with its query, or what came back.
"""

import errno
import socket
import ssl
from types import MappingProxyType
from typing import Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from tramontane.webhooks.flight import Phase
from tramontane.webhooks.models import ErrorClass

#: What an exchange may raise; anything else is a fault of ours.
FAILURES: Final = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError, ValueError)

# X509_V_ERR_… of OpenSSL.
_CERTIFICATE: Final = MappingProxyType(
    {
        9: (ErrorClass.TLS_CERT_EXPIRED, "the certificate is not valid yet"),
        10: (ErrorClass.TLS_CERT_EXPIRED, "the certificate has expired"),
        62: (ErrorClass.TLS_HOSTNAME, "the certificate is for another host name"),
        64: (ErrorClass.TLS_HOSTNAME, "the certificate is for another address"),
        18: (ErrorClass.TLS_OTHER, "the certificate is signed by itself"),
        19: (ErrorClass.TLS_OTHER, "the certificate's chain ends in an authority that is not trusted"),
        20: (ErrorClass.TLS_OTHER, "the certificate's authority is not known; its chain may be incomplete"),
    }
)
_LATE: Final = MappingProxyType(
    {
        Phase.QUEUE: ErrorClass.CONNECT_TIMEOUT,
        Phase.DNS: ErrorClass.DNS,
        Phase.CONNECT: ErrorClass.CONNECT_TIMEOUT,
        Phase.TLS: ErrorClass.TLS_OTHER,
        Phase.HEADERS: ErrorClass.TIMEOUT_HEADERS,
        Phase.BODY: ErrorClass.TIMEOUT_BODY,
    }
)
_NO_HTTP: Final = (ErrorClass.PROTOCOL, "the answer is not HTTP/1.1 as it should be")
_CLOSED: Final = (ErrorClass.RESET, "the connection was closed before the answer was complete")
_UNRESOLVED: Final = (ErrorClass.DNS, "the host name has no address")
_REFUSED: Final = (ErrorClass.CONNECT_REFUSED, "the connection was refused")

#: The first that fits counts. The last one fits whatever is left in `FAILURES`.
_KINDS: Final[tuple[tuple[type[Exception], tuple[ErrorClass, str]], ...]] = (
    (socket.gaierror, _UNRESOLVED),
    (aiohttp.ClientConnectorDNSError, _UNRESOLVED),
    (ConnectionRefusedError, _REFUSED),
    (aiohttp.ServerFingerprintMismatch, (ErrorClass.TLS_OTHER, "the certificate is not the expected one")),
    (ssl.SSLError, (ErrorClass.TLS_OTHER, "TLS failed")),
    (aiohttp.ClientSSLError, (ErrorClass.TLS_OTHER, "TLS failed")),
    (aiohttp.ClientResponseError, _NO_HTTP),
    (HttpProcessingError, _NO_HTTP),
    (aiohttp.ServerDisconnectedError, _CLOSED),
    (aiohttp.ClientPayloadError, _CLOSED),
    (aiohttp.ClientConnectionError, _CLOSED),
    (OSError, _CLOSED),
    (RuntimeError, _CLOSED),  # uvloop says so of a transport that has just been closed
    (Exception, (ErrorClass.PROTOCOL, "the request or its answer is not sound HTTP")),
)
_STATUSES: Final = MappingProxyType(
    {410: (ErrorClass.GONE, ": gone for good"), 413: (ErrorClass.TOO_LARGE, ": the body is too large")}
)
_HUNDREDS: Final = MappingProxyType(
    {
        3: (ErrorClass.REDIRECT, ": redirects are never followed"),
        4: (ErrorClass.HTTP_4XX, ""),
        5: (ErrorClass.HTTP_5XX, ""),
    }
)
_NO_STATUS: Final = (ErrorClass.PROTOCOL, ", which is no answer to a request")
_UNREACHABLE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL})


def failure_of(error: BaseException, phase: Phase) -> tuple[ErrorClass, str]:
    """What `error`, one of `FAILURES`, means when it comes in `phase`."""
    error = _root(error)
    if isinstance(error, TimeoutError):
        return _LATE[phase], f"{phase} did not come in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        unknown = (ErrorClass.TLS_OTHER, "the certificate cannot be verified")
        return _CERTIFICATE.get(error.verify_code, unknown)
    if phase is Phase.TLS and isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return ErrorClass.TLS_OTHER, "the connection was closed during the TLS handshake"
    if phase is Phase.CONNECT and isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        unreachable = error.errno in _UNREACHABLE
        return ErrorClass.CONNECT_REFUSED, "the address cannot be reached" if unreachable else _REFUSED[1]
    return next(meaning for kind, meaning in _KINDS if isinstance(error, kind))


def failure_of_status(status: int) -> tuple[ErrorClass, str] | None:
    """What an answer of this status means; None for a success."""
    if 200 <= status < 300:
        return None
    error_class, rest = _STATUSES.get(status) or _HUNDREDS.get(status // 100, _NO_STATUS)
    return error_class, f"answered {status}{rest}"


def _root(error: BaseException) -> BaseException:
    """What aiohttp's connector wrapped."""
    while isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientConnectorDNSError):
        inner = getattr(error, "certificate_error", None) or error.os_error
        if inner is error:
            break
        error = inner
    return error
