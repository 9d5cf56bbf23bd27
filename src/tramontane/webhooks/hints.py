"""What to change when an attempt failed: one line, for the people who own the receiver."""

import re
from types import MappingProxyType
from typing import Final

from tramontane.webhooks.models import ErrorClass, Exchange

#: Characters of a `Location` that are shown; a longer one is cut, and ends in dots.
LONGEST_LOCATION: Final = 200
_PERMANENT = frozenset({301, 308})
_STRANGE = re.compile(r"[^\x21-\x7e]")
_USERINFO = re.compile(r"//[^/?#]*@")
_WHERE_TO = re.compile(r"https?://|/", re.IGNORECASE)

_BY_CLASS: Final = MappingProxyType(
    {
        ErrorClass.DNS: "the name does not resolve: check the host of the URL and its DNS records",
        ErrorClass.CONNECT_REFUSED: "the connection was refused: is the receiver running, and is this its port?",
        ErrorClass.CONNECT_TIMEOUT: "no connection within the time: a firewall drops our packets, or the host is down",
        ErrorClass.TLS_CERT_EXPIRED: "the TLS certificate has expired: renew it",
        ErrorClass.TLS_HOSTNAME: "the TLS certificate is made out to another name: register the URL under that name",
        ErrorClass.TLS_OTHER: "TLS failed: serve the whole chain of a public authority, with TLS 1.2 or newer",
        ErrorClass.TIMEOUT_HEADERS: "no answer within the time: answer 2xx at once, and do the work afterwards",
        ErrorClass.TIMEOUT_BODY: "the answer did not end within the time: answer with a short body, or none",
        ErrorClass.RESET: "the connection was closed before the answer: see the log of the receiver, or of its proxy",
        ErrorClass.PROTOCOL: "what came back is not sound HTTP: is this the receiver's port?",
        ErrorClass.BLOCKED_SSRF: "our policy does not allow this address",
        ErrorClass.GONE: "410: the receiver wants no more of these; the endpoint is disabled until somebody enables it",
        ErrorClass.TOO_LARGE: "413: the body is too large for the receiver: raise its limit, or use the thin format",
    }
)
_BY_STATUS: Final = MappingProxyType(
    {
        400: "the receiver could not read the request: see its log",
        401: "the receiver refused our signature or credentials: compare the secret on both sides",
        403: "the receiver, or a firewall before it, forbids the call: let our user agent and addresses pass",
        404: "no such path at the receiver: check the URL, and that the route is deployed",
        405: "the receiver takes no POST at this URL",
        408: "the receiver gave up reading the request: see the timeouts of its proxy",
        415: "the receiver does not take application/json",
        422: "the receiver understood the request and refused its content: see its log",
        425: "the receiver asked us to come back later",
        429: "the receiver asked us to slow down; fewer are sent at a time",
        500: "the receiver failed: see its log",
        502: "the proxy got no answer from the receiver: is it running?",
        503: "the receiver is overloaded or in maintenance",
        504: "the proxy waited in vain for the receiver: answer 2xx at once, and do the work afterwards",
    }
)


def hint_for(exchange: Exchange) -> str:
    """What to change, in one line of printable text; empty for a success.

    Of what the receiver sent it quotes the status and the `Location` of a redirect, the latter as printable ASCII,
    without credentials and cut to LONGEST_LOCATION characters. Of a blocked address it repeats our own `detail`.
    """
    known = exchange.error_class
    if known is None:
        return ""
    if known is ErrorClass.BLOCKED_SSRF and exchange.detail:
        return exchange.detail
    if known is ErrorClass.REDIRECT:
        return _redirected(exchange.status or 300, exchange.header("location"))
    if known in _BY_CLASS:
        return _BY_CLASS[known]
    status = exchange.status or 0
    return f"{status}: {_BY_STATUS.get(status, 'the receiver did not take it: see its log')}"


def _redirected(status: int, location: str | None) -> str:
    where = _shown((location or "").strip())
    if not where:
        return f"{status} without a place to go: redirects are never followed, so register the final URL"
    if status in _PERMANENT:
        return f"{status} to {where}: register that URL"
    return f"{status} to {where}: redirects are never followed, so register the URL that answers 2xx itself"


def _shown(location: str) -> str:
    """`location` fit to be shown, or nothing for what is neither an http address nor a path."""
    if not _WHERE_TO.match(location):
        return ""
    plain = _STRANGE.sub("?", _USERINFO.sub("//", location, count=1))
    return plain if len(plain) <= LONGEST_LOCATION else plain[:LONGEST_LOCATION] + "..."
