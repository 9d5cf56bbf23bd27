"""Readable nonsense about winds, seas and code: the same for the same source of chance, as long as is wanted."""

import random
import re

_SENTENCES = (
    "{Wind} comes down from {place} and {does} {thing}.",
    "By {time}, {thing} is {state}, and {wind} has nothing more to say.",
    "A program is like {thing}: it {does} best when nobody is watching.",
    "{Somebody} of {place} keeps a log of every gust, numbered from one, with no gaps.",
    "What {wind} takes at {time}, it returns before {other}.",
    "There is {thing} at {place} that {does} only when the sky is {state}.",
    "Ask {somebody} why, and you will hear that {wind} was there first.",
    "Between {place} and {elsewhere}, {wind} forgets its name.",
    "Good code, says {somebody}, should be {state} at {time} as well.",
    "Then {wind} turns, and {thing} — patient until now — {does}.",
    "Nothing is lost that was written down before {time}.",
    "{Somebody} smiles: “{Wind} is {state} today.”",
)
_WORDS: dict[str, tuple[str, ...]] = {
    "wind": (
        "the mistral",
        "the tramontane",
        "the sirocco",
        "a light breeze",
        "the marin",
        "the levant",
        "a night wind",
    ),
    "place": ("Sète", "the Cévennes", "Marseille", "Cap Béar", "the Rhône valley", "an old harbour", "Nîmes"),
    "elsewhere": ("Perpignan", "the open sea", "the garrigue", "Port-Vendres", "the lighthouse", "Collioure"),
    "thing": (
        "a small boat",
        "the queue",
        "an unread letter",
        "the harbour",
        "a careful function",
        "the tide",
        "a sail",
    ),
    "does": ("waits", "sings", "turns around", "crosses the bay", "holds the line", "commits", "answers softly"),
    "state": ("calm", "clear", "almost blue", "easy to read", "full of salt", "exact", "quiet"),
    "time": ("noon", "dawn", "the first cold morning", "low tide", "midnight", "the end of the watch"),
    "other": ("evening", "the next tide", "anybody notices", "the second attempt", "the lamps are lit"),
    "somebody": ("the keeper", "an old sailor", "the baker", "a patient engineer", "the harbour master"),
}
_SENTENCES_PER_PARAGRAPH = 4
# Long words are cut as a tokenizer would, so a chunk is never much longer than a dozen characters.
_TOKEN = re.compile(r"\s{0,8}\S{1,12}|\s{1,8}")


def tokens_of(text: str) -> list[str]:
    """The text in pieces, most of them a word with the space before it. Joined they are the text again."""
    return _TOKEN.findall(text)


def write(chance: random.Random, length: int) -> list[str]:
    """Whole sentences of at least `length` tokens. A longer text begins with the shorter one."""
    tokens: list[str] = []
    sentences = 0
    while len(tokens) < length:
        space = "" if not sentences else "\n\n" if sentences % _SENTENCES_PER_PARAGRAPH == 0 else " "
        tokens += tokens_of(space + _sentence(chance))
        sentences += 1
    return tokens


def _sentence(chance: random.Random) -> str:
    words = {name: chance.choice(choices) for name, choices in _WORDS.items()}
    capitals = {name.capitalize(): word[0].upper() + word[1:] for name, word in words.items()}
    return chance.choice(_SENTENCES).format(**words, **capitals)


def name(chance: random.Random) -> str:
    """A word that can stand for anything: `Sète`, `the Rhône valley`."""
    return chance.choice(_WORDS["place"])
