"""What tokens cost: a table that its users keep, with dates, and the sum for one attempt. Pure.

[[price]]
model = "mistral-small-*"       # a name, or the beginning of one
from = 2026-01-01               # in force from this day on (UTC)
input = 0.1                     # per million tokens
output = 0.3
cached_input = 0.01             # left out: as `input`
currency = "EUR"
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Context, Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from tramontane.errors import ConfigurationError
from tramontane.models import Money, Tokens

#: Sums stay exact: no price has so many digits, no answer so many tokens.
_EXACT: Final = Context(prec=60)
_FIELDS: Final = ("model", "from", "input", "output", "cached_input", "currency")
_LARGEST: Final = 2**53


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """One entry. Amounts are for a million tokens."""

    #: A model's name, or with `*` at its end the beginning of one.
    model: str
    since: date
    input: Decimal
    output: Decimal
    cached_input: Decimal
    currency: str

    def covers(self, model: str, day: date) -> bool:
        """Whether it may be the price of a model on a day."""
        if self.since > day:
            return False
        return model.startswith(self.model[:-1]) if self.model.endswith("*") else model == self.model

    def of(self, tokens: Tokens) -> Money:
        """What so many tokens cost."""
        cached = min(tokens.cached, tokens.prompt)
        parts = (
            (tokens.prompt - cached, self.input),
            (cached, self.cached_input),
            (tokens.completion, self.output),
        )
        amount = Decimal(0)
        for count, price in parts:
            amount = _EXACT.add(amount, _EXACT.multiply(Decimal(count), price))
        return Money(amount=_EXACT.normalize(_EXACT.scaleb(amount, -6)), currency=self.currency)


class Prices:
    """The table. Of several entries for a model the closest name counts, and of that the latest date."""

    def __init__(self, entries: Iterable[Price] = ()) -> None:
        self._entries = sorted(entries, key=_rank, reverse=True)

    def cost(self, model: str, usage: str | None, at: datetime) -> Money | None:
        """What an attempt that ended then has cost; None without a price, or without a usage.

        usage: as Mistral reported it, JSON; at: in UTC.
        """
        tokens = read_tokens(usage)
        return None if tokens is None else self.price(model, tokens, at)

    def knows(self, model: str, at: datetime) -> bool:
        """Whether there is a price for a model at a time (UTC)."""
        return self.price(model, Tokens(prompt=0, completion=0), at) is not None

    def price(self, model: str, tokens: Tokens, at: datetime) -> Money | None:
        """What so many tokens cost at a time (UTC); None without a price."""
        found = next((entry for entry in self._entries if entry.covers(model, at.date())), None)
        return None if found is None else found.of(tokens)


def _rank(entry: Price) -> tuple[bool, int, date]:
    return not entry.model.endswith("*"), len(entry.model), entry.since


def read_tokens(usage: str | None) -> Tokens | None:
    """Tokens of a usage, as Mistral reports it: JSON that is not ours, so whatever does not fit counts as none."""
    if usage is None:
        return None
    try:
        fields = msgspec.json.decode(usage)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    details = fields.get("prompt_tokens_details") or fields.get("prompt_token_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else fields.get("num_cached_tokens")
    return Tokens(
        prompt=_count(fields.get("prompt_tokens")),
        completion=_count(fields.get("completion_tokens")),
        cached=_count(cached),
    )


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < _LARGEST else 0


def read_prices(text: str, name: str) -> Prices:
    """The table of a file.

    text: its TOML; name: how messages call it. Raises ConfigurationError naming file, entry and field.
    """
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, InvalidOperation) as error:
        raise ConfigurationError(f"{name} is not TOML: {error}") from None
    entries = document.get("price")
    if not isinstance(entries, list) or not entries or document.keys() != {"price"}:
        raise ConfigurationError(f"{name} must hold [[price]] tables, and nothing else")
    prices = [_entry(entry, f"{name}: price {number}") for number, entry in enumerate(entries, 1)]
    _agree(prices, name)
    return Prices(prices)


def _agree(prices: list[Price], name: str) -> None:
    first: dict[tuple[str, date], int] = {}
    for number, price in enumerate(prices, 1):
        if price.currency != prices[0].currency:
            raise ConfigurationError(
                f"{name}: price {number}: currency is {price.currency}, and {prices[0].currency} before: "
                "sums need one currency for all"
            )
        if (price.model, price.since) in first:
            raise ConfigurationError(
                f"{name}: price {number}: from: price {first[price.model, price.since]} is for {price.model!r} "
                "from the same day"
            )
        first[price.model, price.since] = number


def _entry(fields: Any, where: str) -> Price:
    if not isinstance(fields, dict):
        raise ConfigurationError(f"{where} must be a table")
    for field in fields:
        if field not in _FIELDS:
            raise ConfigurationError(f"{where}: {field} is not a known field; there are {', '.join(_FIELDS)}")
    for field in _FIELDS:
        if field not in fields and field != "cached_input":
            raise ConfigurationError(f"{where}: {field} is missing")
    model, since, currency = fields["model"], fields["from"], fields["currency"]
    if not isinstance(model, str) or not model or "*" in model[:-1]:
        raise ConfigurationError(f"{where}: model must be a name, with at most one `*`, at its end")
    if not isinstance(since, date) or isinstance(since, datetime):
        raise ConfigurationError(f"{where}: from must be a day, without quotes: 2026-01-01")
    if not isinstance(currency, str) or len(currency) != 3 or not (currency.isascii() and currency.isupper()):
        raise ConfigurationError(f"{where}: currency must be three capital letters, such as EUR")
    return Price(
        model=model,
        since=since,
        input=_amount(fields, "input", where),
        output=_amount(fields, "output", where),
        cached_input=_amount(fields, "cached_input" if "cached_input" in fields else "input", where),
        currency=currency,
    )


def _amount(fields: dict[str, Any], field: str, where: str) -> Decimal:
    value = fields[field]
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ConfigurationError(f"{where}: {field} must be a number, per million tokens")
    amount = Decimal(value)
    if not amount.is_finite() or not 0 <= amount < 10**12:
        raise ConfigurationError(f"{where}: {field} must be 0 or more")
    return amount
