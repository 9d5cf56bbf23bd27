"""A FastAPI dependency that hands a route only webhooks that are genuine.

FromTramontane = Annotated[Verified, Depends(verified(secret))]

FastAPI is imported when `verified` is called: who only sends webhooks, or receives them otherwise, does not load it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from tramontane.errors import InvalidSignature
from tramontane.webhooks.signatures import TOLERANCE, Verified, usable_secrets, verify

if TYPE_CHECKING:
    from starlette.requests import Request

#: Bytes of a body. Ours stay under 256 KiB.
LIMIT: Final = 1024 * 1024

# What FastAPI makes of an HTTPException, `{"detail": …}`, is a problem document already; it only has to say so.
_PROBLEM: Final = {"content-type": "application/problem+json"}


def verified(
    secret: str | Sequence[str], *, tolerance: float = TOLERANCE, allow_unbound: bool = False, limit: int = LIMIT
) -> "Callable[[Request], Awaitable[Verified]]":
    """A dependency that answers 400 to what is not genuine and 413 to a body over `limit` bytes, and else is Verified.

    secret, tolerance, allow_unbound: as for `signatures.verify`. A secret that cannot be used raises InvalidSignature
    here, when the receiver starts, and not at its first webhook.
    """
    from fastapi import HTTPException, Request

    secrets = usable_secrets(secret)

    async def webhook(request: Request) -> Verified:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise HTTPException(413, f"the body has more than {limit} bytes", _PROBLEM)
        try:
            return verify(bytes(body), request.headers, secrets, tolerance=tolerance, allow_unbound=allow_unbound)
        except InvalidSignature as error:
            raise HTTPException(400, error.message, _PROBLEM) from None

    return webhook
