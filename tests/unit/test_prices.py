"""Prices: which entry counts, exact sums, and files that say what is wrong with them."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tramontane.errors import ConfigurationError
from tramontane.models import Money, Tokens
from tramontane.prices import Prices, read_prices, read_tokens

TABLE = """
[[price]]
model = "mistral-*"
from = 2026-01-01
input = 2
output = 6
currency = "EUR"

[[price]]
model = "mistral-small-*"
from = 2026-01-01
input = 0.1
output = 0.3
cached_input = 0.01
currency = "EUR"

[[price]]
model = "mistral-small-*"
from = 2026-11-22
input = 0.2
output = 0.6
currency = "EUR"

[[price]]
model = "mistral-small-2506"
from = 2026-12-01
input = 9
output = 9
currency = "EUR"
"""
USAGE = '{"prompt_tokens":1000,"completion_tokens":10,"total_tokens":1010}'


def cost(model: str, day: str, usage: str | None = USAGE) -> Money | None:
    return read_prices(TABLE, "table").cost(model, usage, datetime.fromisoformat(day).replace(tzinfo=UTC))


@pytest.mark.parametrize(
    ("model", "day", "amount"),
    [
        ("mistral-small-latest", "2026-11-21T23:59:59", "0.000103"),
        ("mistral-small-latest", "2026-11-22T00:00:00", "0.000206"),
        ("mistral-large-latest", "2026-11-22", "0.00206"),
        ("mistral-small-2506", "2026-11-30", "0.000206"),
        ("mistral-small-2506", "2026-12-01", "0.00909"),
    ],
)
def test_the_closest_name_that_is_in_force_counts(model: str, day: str, amount: str) -> None:
    assert cost(model, day) == Money(amount=Decimal(amount), currency="EUR")


def test_there_is_no_cost_without_a_price_or_a_usage() -> None:
    assert cost("codestral-latest", "2026-11-22") is None
    assert cost("mistral-small-latest", "2025-12-31") is None
    assert cost("mistral-small-latest", "2026-11-22", None) is None
    assert Prices().cost("mistral-small-latest", USAGE, datetime(2026, 11, 22, tzinfo=UTC)) is None


def test_cached_tokens_have_their_own_price_and_cost_the_full_one_without() -> None:
    usage = '{"prompt_tokens":1000,"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":600}}'
    assert cost("mistral-small-latest", "2026-06-01", usage) == Money(amount=Decimal("0.000046"), currency="EUR")
    assert cost("mistral-large-latest", "2026-06-01", usage) == Money(amount=Decimal("0.002"), currency="EUR")


def test_sums_are_exact() -> None:
    usage = '{"prompt_tokens":9007199254740991,"completion_tokens":1}'
    found = cost("mistral-small-latest", "2026-06-01", usage)
    assert found is not None
    assert format(found.amount, "f") == "900719925.4740994"


@pytest.mark.parametrize(
    "usage",
    [
        "[]",
        "{",
        '"x"',
        '{"prompt_tokens":"7","completion_tokens":-1}',
        '{"prompt_tokens":true,"completion_tokens":1e9}',
    ],
)
def test_a_usage_that_makes_no_sense_counts_as_nothing(usage: str) -> None:
    assert read_tokens(usage) in (None, Tokens(prompt=0, completion=0))


GOOD = 'model = "m"\nfrom = 2026-01-01\ninput = 1\noutput = 1\ncurrency = "EUR"\n'


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("price = [", "prices.toml is not TOML"),
        ("", r"must hold \[\[price\]\]"),
        ("[prices]", r"must hold \[\[price\]\]"),
        ("[[price]]\n" + GOOD + "extra = 1", "price 1: extra is not a known field"),
        ("[[price]]\n" + GOOD.replace("output = 1\n", ""), "price 1: output is missing"),
        ("[[price]]\n" + GOOD.replace("2026-01-01", '"2026-01-01"'), "price 1: from must be a day"),
        ("[[price]]\n" + GOOD.replace("2026-01-01", "2026-01-01T00:00:00Z"), "price 1: from must be a day"),
        ("[[price]]\n" + GOOD.replace('"m"', '"m*x"'), "price 1: model must be"),
        ("[[price]]\n" + GOOD.replace("input = 1", "input = -1"), "price 1: input must be 0 or more"),
        ("[[price]]\n" + GOOD.replace("input = 1", "input = nan"), "price 1: input must be 0 or more"),
        ("[[price]]\n" + GOOD.replace("input = 1", "input = true"), "price 1: input must be a number"),
        ("[[price]]\n" + GOOD.replace('"EUR"', '"euro"'), "price 1: currency must be"),
        ("[[price]]\n" + GOOD + "[[price]]\n" + GOOD, "price 2: from: price 1 is for 'm'"),
        ("[[price]]\n" + GOOD + "[[price]]\n" + GOOD.replace("EUR", "USD"), "price 2: currency is USD"),
    ],
)
def test_a_bad_file_is_told_by_file_entry_and_field(text: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong) as raised:
        read_prices(text, "prices.toml")
    assert str(raised.value).startswith("prices.toml")


def test_the_documented_example_can_be_read() -> None:
    example = Path(__file__).parents[2] / "docs" / "prices.example.toml"
    prices = read_prices(example.read_text("utf-8"), example.name)
    assert prices.cost("mistral-small-latest", USAGE, datetime(2026, 11, 22, tzinfo=UTC)) is not None
