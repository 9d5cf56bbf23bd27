"""The parameters of an address: what a route does not name is refused, on every route, here."""

from collections.abc import Iterator
from typing import Any, Final

from fastapi import Depends, Request

from tramontane.errors import InvalidInput

Pairs = tuple[tuple[str, str], ...]


class Prefixed:
    """For a route that takes a family of parameters, such as `metadata.NAME=VALUE`: their names and values."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    async def __call__(self, request: Request) -> Pairs:
        """The pairs, without the prefix."""
        pairs = request.query_params.multi_items()
        return tuple((name.removeprefix(self.prefix), value) for name, value in pairs if name.startswith(self.prefix))


async def _refuse_unknown(request: Request) -> None:
    """Raises InvalidInput for a parameter that the route does not take."""
    if not request.scope["query_string"]:
        return
    names, prefixes = set[str](), set[str]()
    for one in _with_its_own(request.scope["route"].dependant):
        names |= {field.alias for field in one.query_params}
        if isinstance(one.call, Prefixed):
            prefixes.add(one.call.prefix)
    for name in request.query_params:
        if name not in names and not name.startswith(tuple(prefixes)):
            raise InvalidInput(name, _refusal([*sorted(names), *(f"{prefix}NAME" for prefix in prefixes)]))


def _with_its_own(dependant: Any) -> Iterator[Any]:
    """What a route depends on, itself first: it and each of them has parameters."""
    yield dependant
    for one in dependant.dependencies:
        yield from _with_its_own(one)


def _refusal(known: list[str]) -> str:
    return "is not a known parameter; " + (f"there are {', '.join(known)}" if known else "there are none here")


#: Of a whole API: it is asked before anything of a route's own.
NO_UNKNOWN: Final = Depends(_refuse_unknown)
