"""Numbers that nothing on a job's way could read: beyond a double (`1e400`), or of thousands of digits.

JSON may spell them, and what is Mistral's passes through as it came: such a number would be met late, by whoever reads
that field. It is refused where it comes in.
"""

import json
import math
from typing import Any, Final

import msgspec

from tramontane.errors import InvalidInput

#: As many digits as an integer may have, to msgspec as to Python itself.
_MOST_DIGITS: Final = 4300


def refuse_unreadable_numbers(body: bytes) -> None:
    """Raises InvalidInput naming the field, as far as its path is of plain names. body: valid JSON."""
    try:
        msgspec.json.decode(body)
    except msgspec.ValidationError:
        # Objects as pairs, since a name may come twice.
        path = _find(json.loads(body, parse_int=_whole, object_pairs_hook=tuple)) or []
        raise InvalidInput(
            ".".join(path),
            f"is a number that cannot be read: 1.8e308 is about the most, and {_MOST_DIGITS} digits for a whole number",
        ) from None


def _whole(digits: str) -> float:
    return math.inf if len(digits.lstrip("-")) > _MOST_DIGITS else 0.0


def _find(value: Any) -> list[str] | None:
    """The path of the first number that was too large."""
    if isinstance(value, float):
        return [] if math.isinf(value) else None
    pairs = value if isinstance(value, tuple) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        if (path := _find(inner)) is not None:
            return [str(name), *path] if _is_plain(name) else []
    return None


def _is_plain(name: str | int) -> bool:
    """Whether it may be told: the place in a list, or a name as parameters have them."""
    return isinstance(name, int) or (name.isascii() and name.isidentifier() and len(name) <= 64)
