"""Who asks: a key becomes a caller, and where no key has ever been made, everybody is one.

What is known of a key is kept for ten seconds, and doubted at once when any key or tenant changes, in whichever
process. When the database does not answer, nobody is let in whose key is not known by then.

Nobody guesses a key; guesses are held back to spare the database. Yet many people share an address, so whether one of
them may come in hangs on the key alone: it is looked up in any case, and what wrong keys cost their address is the
pace. Past a number of them its other keys are looked up one at a time, and those that are wrong are told to wait.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from tramontane.errors import ConfigurationError, DatabaseError, KeyRefused, ScopeMissing, TooManyTries
from tramontane.keys import ApiKey, hash_of, new_key, tenant_named
from tramontane.listener import OUTAGES, Listener
from tramontane.models import Caller, Scope
from tramontane.store import KeyStore
from tramontane.store.keys import CHANNEL

#: How long a change may go unnoticed whose hint was lost.
KEPT: Final = timedelta(seconds=10)
#: The header in which an operator names the tenant to act for.
TENANT_HEADER: Final = "X-Tramontane-Tenant"
#: Different unknown keys that one address may try in a minute, before it is held back.
TRIES: Final = 30

_MINUTE: Final = timedelta(minutes=1)
#: Seconds in the line of those who are looked up one at a time.
_PATIENCE: Final = 5.0
_MOST_KNOWN: Final = 10_000
_HOW: Final = "send it as `Authorization: Bearer tm_…`; `tramontane keys create` makes one"


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database said of a hash, and when; None: no such key."""

    key: ApiKey | None
    since: datetime
    #: How many changes had been told when it was asked.
    changes: int


class Authentication:
    """Tells callers from their keys. Call `watch` once, so that changes are noticed at once."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        #: By hash, those that came longest ago first. What is wrong takes no room of what is good; and what was good
        #: once stays, since it is no guess.
        self._good: OrderedDict[bytes, _Known] = OrderedDict()
        self._wrong: OrderedDict[bytes, _Known] = OrderedDict()
        #: By id: those with which tickets were made.
        self._makers: OrderedDict[bytes, _Known] = OrderedDict()
        self._own: set[bytes] = set()
        self._tries = _Tries()
        self._line = asyncio.Lock()
        self._needed = False
        self._open_since: datetime | None = None
        #: Rises with every change, so that what was read before one is not kept after it.
        self._changes = 0

    async def watch(self, listener: Listener) -> None:
        """Doubt what is known whenever a key or a tenant changes."""
        await listener.add(CHANNEL, self._doubt)

    async def caller(self, key: str | None, *, tenant: str | None, address: str, now: datetime) -> Caller:
        """Who asks with that key, for a tenant that an operator may name.

        Raises KeyRefused, ScopeMissing, TooManyTries, InvalidInput for a tenant that cannot be one, and DatabaseError
        when it cannot be told.
        """
        digest = hash_of(key) if key is not None else None
        if digest in self._own or not await self.needed(now):
            return _acting(Caller(), tenant)
        if key is None:
            raise KeyRefused(f"a key is needed: {_HOW}")
        found = await self._find(digest, address, now) if digest is not None else None
        if found is None:
            raise KeyRefused(f"no such key: {_HOW}")
        if (state := found.state(now)) != "active":
            raise KeyRefused(f"this key {'was revoked' if state == 'revoked' else 'has expired'}: use another one")
        return _acting(Caller(tenant=found.tenant, scopes=found.scopes, key=found.id), tenant)

    async def active(self, key_id: UUID, now: datetime) -> bool:
        """Whether a key, named by its id, opens anything still. Raises DatabaseError."""
        known = self._makers.get(key_id.bytes)
        if known is None or not self._holds(known, now):
            known = await self._known(self._store.find(key_id), now)
            _keep(self._makers, key_id.bytes, known)
        return known.key is not None and known.key.state(now) == "active"

    async def needed(self, now: datetime) -> bool:
        """Whether a key is needed: from the first one on, for good. Raises DatabaseError."""
        if not self._needed and not _fresh(self._open_since, now):
            changes = self._changes
            try:
                self._needed = await self._store.any() or self._needed
            except OUTAGES:
                raise _outage() from None
            self._open_since = now if changes == self._changes else None
        return self._needed

    def close(self) -> None:
        """Ask for keys from now on, whether there are any or not."""
        self._needed = True

    async def insist(self, why: str, instead: str) -> None:
        """The same, where others can reach us. Raises ConfigurationError when nobody has a key, saying both."""
        self.close()
        if not await self._store.any():
            raise ConfigurationError(
                f"{why}, and nobody has a key yet: make one first, with `tramontane keys create`, or {instead}"
            )

    def own_key(self) -> str:
        """A key for a client in this process, to which the database belongs: known here, and written down nowhere."""
        key = new_key()
        digest = hash_of(key)
        assert digest is not None
        self._own.add(digest)
        return key

    async def _find(self, digest: bytes, address: str, now: datetime) -> ApiKey | None:
        known = self._good.get(digest) or self._wrong.get(digest)
        if known is None or not self._holds(known, now):
            held_back = digest not in self._good and self._tries.many(address, now)
            known = await (self._in_line(digest, now) if held_back else self._look_up(digest, now))
            _keep(self._wrong if known.key is None else self._good, digest, known)
            if known.key is None:
                self._tries.count(address)
                if held_back:
                    raise _too_many()
        elif known.key is not None:
            self._good.move_to_end(digest)
        return known.key

    async def _in_line(self, digest: bytes, now: datetime) -> _Known:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._line.acquire()
        except TimeoutError:
            raise _too_many() from None
        try:
            return await self._look_up(digest, now)
        finally:
            self._line.release()

    async def _look_up(self, digest: bytes, now: datetime) -> _Known:
        return await self._known(self._store.use(digest, now), now)

    async def _known(self, answer: Awaitable[ApiKey | None], now: datetime) -> _Known:
        changes = self._changes
        try:
            return _Known(await answer, now, changes)
        except OUTAGES:
            raise _outage() from None

    def _holds(self, known: _Known, now: datetime) -> bool:
        return known.changes == self._changes and _fresh(known.since, now)

    def _doubt(self, _: str) -> None:
        self._changes += 1
        self._open_since = None


class _Tries:
    """Unknown keys by address and minute."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._since: datetime | None = None

    def many(self, address: str, now: datetime) -> bool:
        """Whether the address has tried as many as it may."""
        if self._since is None or not self._since <= now < self._since + _MINUTE or len(self._counts) > _MOST_KNOWN:
            self._counts, self._since = {}, now
        return self._counts.get(address, 0) >= TRIES

    def count(self, address: str) -> None:
        """One more."""
        self._counts[address] = self._counts.get(address, 0) + 1


def _keep(memory: OrderedDict[bytes, _Known], name: bytes, known: _Known) -> None:
    memory[name] = known
    memory.move_to_end(name)
    if len(memory) > _MOST_KNOWN:
        memory.popitem(last=False)


def _acting(caller: Caller, tenant: str | None) -> Caller:
    """The caller for the tenant that was named; for its own when none was."""
    if tenant is None or tenant == caller.tenant:
        return caller
    if not caller.may(Scope.OPERATOR):
        raise ScopeMissing(f"this key acts for its own tenant alone: {TENANT_HEADER} is for operators")
    return replace(caller, tenant=tenant_named(TENANT_HEADER, tenant))


def _fresh(since: datetime | None, now: datetime) -> bool:
    # A clock that was set back keeps nothing alive.
    return since is not None and since <= now < since + KEPT


def _outage() -> DatabaseError:
    return DatabaseError("the database does not answer; try again")


def _too_many() -> TooManyTries:
    return TooManyTries("this address has tried too many unknown keys: wait a minute")
