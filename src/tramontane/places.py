"""How many streams one process serves, in all and to one address: whoever comes later is asked to come back."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tramontane.errors import TooManyStreams


class Place:
    """Room for one stream."""

    def __init__(self, places: "Places", address: str) -> None:
        self._places: Places | None = places
        self._address = address

    def leave(self) -> None:
        """Give it back. A second call does nothing."""
        places, self._places = self._places, None
        if places is not None:
            places.give_back(self._address)


class Places:
    """The streams that are open."""

    def __init__(self, *, total: int, per_address: int) -> None:
        self.taken = 0
        self._total = total
        self._per_address = per_address
        self._by_address: Counter[str] = Counter()

    @contextmanager
    def take(self, address: str) -> Iterator[Place]:
        """A place, kept after the block unless that fails. Raises TooManyStreams."""
        if self.taken >= self._total:
            raise TooManyStreams(f"this process serves {self._total} streams already: TRAMONTANE_STREAMS")
        if self._by_address[address] >= self._per_address:
            raise TooManyStreams(
                f"this address follows {self._per_address} streams already: TRAMONTANE_STREAMS_PER_ADDRESS"
            )
        self.taken += 1
        self._by_address[address] += 1
        place = Place(self, address)
        try:
            yield place
        except BaseException:
            place.leave()
            raise

    def give_back(self, address: str) -> None:
        """One stream less."""
        self.taken -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
