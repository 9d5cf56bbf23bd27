"""Where a webhook goes: a URL read so that nobody else can read it differently.

Syntax only, and strict: what two programs may understand in two ways is refused, since what is judged must be what is
dialled. The result is the text that the transport dials, from the same parser.
"""

import re
import unicodedata
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, NoReturn

import idna
from yarl import URL

from tramontane.errors import CallbackBlocked
from tramontane.webhooks.networks import read_address

LONGEST_URL: Final = 2048
_LONGEST_HOST: Final = 253

_PARTS: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)(?P<fragment>#.*)?"
)
_AUTHORITY: Final = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>[0-9]{1,5}))?")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_FOREIGN_DOTS: Final = frozenset("\u3002\uff0e\uff61")
#: Alphabets with letters that look like each other's.
_LOOK_ALIKE: Final = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A URL that can be dialled; whether it may be is the policy's matter."""

    #: As it will be dialled: host in ASCII, path and query percent-encoded.
    url: str
    #: `http` or `https`.
    scheme: str
    #: Lower case, in ASCII, without a trailing dot or brackets.
    host: str
    port: int
    #: The host when it is an address itself, None for a name.
    address: str | None

    @property
    def secure(self) -> bool:
        """True when the receiver has to prove who it is."""
        return self.scheme == "https"


def read_target(url: str, field: str = "callback") -> Target:
    """The target that `url` names. Raises CallbackBlocked with the rule that its syntax breaks."""
    _check_characters(url, field)
    parts = _PARTS.fullmatch(url)
    if parts is None:
        _refuse(field, "write a whole URL, such as https://example.com/hook", "syntax")
    scheme = parts["scheme"].lower()
    if scheme not in ("http", "https"):
        _refuse(field, f"{scheme}:// is no address for a webhook", "scheme", "use https://")
    if "@" in parts["authority"]:
        _refuse(field, "a name or password in the URL is not sent", "userinfo", "use a header in `headers`")
    if parts["fragment"] is not None:
        _refuse(field, "what follows # is never sent to a server", "fragment")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        _refuse(field, "its host and port cannot be read", "host")
    literal = authority["ipv6"]
    host = _ipv6(literal, field) if literal else _name(authority["name"], field)
    port = int(authority["port"] or (443 if scheme == "https" else 80))
    return _dialled(url, scheme, host, port, field)


def ascii_host(text: str) -> str:
    """A host name or address as targets have it: lower case, in ASCII. Raises CallbackBlocked for what is none."""
    bare = text.strip().strip("[]")
    return _ipv6(bare, "host") if ":" in bare else _name(bare, "host")


def _check_characters(url: str, field: str) -> None:
    if not url or len(url) > LONGEST_URL:
        _refuse(field, f"a URL has 1 to {LONGEST_URL:,} characters", "length")
    if not url.isprintable() or " " in url or "\\" in url:
        _refuse(field, "spaces, backslashes, control and invisible characters are not allowed in a URL", "characters")


def _dialled(url: str, scheme: str, host: str, port: int, field: str) -> Target:
    """The target, once the parser of the transport has understood the same."""
    try:
        parsed = URL(url)
        understood = (parsed.scheme, (parsed.raw_host or "").rstrip("."), parsed.port)
    except ValueError:
        understood = None
    if understood != (scheme, host, port) or parsed.raw_user is not None:
        _refuse(field, "it can be read in more than one way", "ambiguous")
    return Target(url=str(parsed), scheme=scheme, host=host, port=port, address=_address(host))


def _address(host: str) -> str | None:
    try:
        read_address(host)
    except ValueError:
        return None
    return host


def _ipv6(text: str, field: str) -> str:
    """In its short form. There is no zone: no address beyond the links of this machine has one."""
    try:
        return IPv6Address(text).compressed
    except ValueError:
        _refuse(field, "it names no IPv6 address", "host")


def _name(text: str, field: str) -> str:
    """A host name in ASCII, or an IPv4 address with its four numbers."""
    host = text.lower() if text.isascii() else _punycode(text, field)
    host = host.removesuffix(".")
    labels = host.split(".")
    if len(host) > _LONGEST_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        _refuse(field, "its host is no host name", "host")
    for label in labels:
        if label.startswith("xn--"):
            _check_alphabets(_decoded(label, field), field)
    # What ends in a number is an address for some resolvers: 2130706433, 0x7f.1 and 127.1 all are 127.0.0.1.
    if _NUMBER.fullmatch(labels[-1]) and (text.endswith(".") or _address(host) is None):
        _refuse(field, "an IPv4 address has four decimal numbers", "ipv4_form")
    return host


def _punycode(text: str, field: str) -> str:
    """Strictly IDNA 2008: nothing is mapped first, for circled digits and full-width dots would become others."""
    try:
        if _FOREIGN_DOTS.intersection(text):
            raise UnicodeError("a dot of another script")
        return idna.encode(text, uts46=False).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        _refuse(field, "its host is no international domain name", "idna", "write it in lower case, or as xn--…")


def _decoded(label: str, field: str) -> str:
    try:
        return idna.decode(label)
    except (idna.IDNAError, UnicodeError):
        _refuse(field, "its host is no international domain name", "idna")


def _check_alphabets(label: str, field: str) -> None:
    """One alphabet per label: with two of these, a name can look like another's letter by letter."""
    letters = (unicodedata.name(character, "").partition(" ")[0] for character in label if character.isalpha())
    if len(_LOOK_ALIKE.intersection(letters)) > 1:
        _refuse(field, "its host mixes alphabets that look alike", "idna")


def _refuse(field: str, message: str, rule: str, hint: str = "") -> NoReturn:
    raise CallbackBlocked(field, message, rule=rule, hint=hint)
