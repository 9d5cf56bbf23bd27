"""Ids and the clock.

An id is a UUIDv7 made here, stored as `uuid`, and shown as a prefix and 26 characters of Crockford's
base32: `job_01K…`. Ids of one process sort by the time they were made, down to about 250 ns.
"""

import secrets
import time
from datetime import UTC, datetime
from uuid import UUID

from tramontane.errors import NotFound

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
# What people type for what they read (Crockford): O is 0, I and L are 1.
_VALUES |= {"O": 0, "I": 1, "L": 1} | {c.lower(): v for c, v in _VALUES.items()} | {"o": 0, "i": 1, "l": 1}


def utc_now() -> datetime:
    """The time, for the edges that own a clock. Everything below them takes `now`."""
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """`2026-11-22T06:46:00.123Z`: the one form in which our JSON writes a time."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, 12 of their fraction (method 3), 62 random."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    return UUID(int=value)


def show_id(prefix: str, value: UUID) -> str:
    """`job_` and 26 characters, the form that leaves the process."""
    number = value.int
    characters = [_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(characters)}"


def read_id(prefix: str, text: str) -> UUID:
    """The UUID behind a shown id.

    Raises NotFound for whatever cannot be one: a wrong id and an unknown one are the same to a caller.
    """
    head, _, body = text.partition("_")
    try:
        if head != prefix or len(body) != 26:
            raise ValueError(text)
        number = 0
        for character in body:
            number = number << 5 | _VALUES[character]
        return UUID(int=number)
    except (KeyError, ValueError):
        raise NotFound(f"no such {prefix}: {text[:64]!r}") from None
