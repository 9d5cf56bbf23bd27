"""How long a receiver's certificate lasts: one TLS handshake, and nothing said in it."""

import asyncio
import ssl
from contextlib import suppress
from datetime import datetime
from typing import Final

from cryptography import x509

from tramontane.webhooks.target import Target

_SECONDS: Final = 5.0


async def certificate_end(target: Target, address: str) -> datetime | None:
    """When the certificate that `address` shows for the target's host ends; None when it shows none in time.

    The caller has asked the policy about the address: this dials it, and no other. Whether the certificate is to be
    trusted is not asked, since that of an expired one is the date that matters most.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(address, target.port, ssl=context, server_hostname=target.host)
    except (OSError, TimeoutError, ValueError):
        return None
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(shown).not_valid_after_utc if shown else None
    except ValueError:
        return None
    finally:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_SECONDS):
                writer.transport.abort()
                await writer.wait_closed()
