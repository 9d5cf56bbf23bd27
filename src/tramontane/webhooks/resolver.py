"""Looking names up: the system's resolver, in a few threads of our own, with nothing remembered.

A lookup that hangs cannot be cancelled, only left alone. It keeps one thread of ours and none of those that the event
loop lends to everybody, and whoever asks for the same name meanwhile waits for the same answer.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

#: The addresses that a host name leads to now, as text. Raises OSError when there are none.
Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]

#: Lookups at a time; the rest wait, within the time that they have.
THREADS = 16


class Resolver:
    """The system's resolver as a `Resolve`. `close` it in the end; a lookup that hangs is not waited for."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="resolver")
        self._under_way: dict[str, asyncio.Future[tuple[str, ...]]] = {}

    async def __call__(self, host: str) -> Sequence[str]:
        """The addresses of `host`, in the order of the system's preference."""
        lookup = self._under_way.get(host)
        if lookup is None:
            lookup = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
            self._under_way[host] = lookup
            lookup.add_done_callback(lambda ended: self._forget(host, ended))
        # Somebody else may wait for it too, so one who gives up leaves it running.
        return await asyncio.shield(lookup)

    def close(self) -> None:
        """Take no more lookups."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget(self, host: str, lookup: "asyncio.Future[tuple[str, ...]]") -> None:
        self._under_way.pop(host, None)
        if not lookup.cancelled():
            lookup.exception()  # asked for, since all who waited may have gone


def _look_up(host: str) -> tuple[str, ...]:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError:  # a label that only looked like one to us
        raise socket.gaierror(socket.EAI_NONAME, "not a name") from None
    return tuple(dict.fromkeys(str(address[0]) for *_, address in answers))
