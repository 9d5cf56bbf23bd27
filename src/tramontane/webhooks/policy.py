"""AddressPolicy: where webhooks may go. Pure; the transport asks it about every address before it dials.

By default only the public Internet over TLS. What an operator allows is a name or a range; what he denies wins; and
the addresses where clouds keep their credentials stay closed unless each is named by itself.

Two questions are asked at two times. When a callback or an endpoint arrives, its URL: syntax, port, name, and the
address if it is one. When it is dialled, every address that its name leads to at that moment, since a name may lead
elsewhere by then.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tramontane.errors import CallbackBlocked
from tramontane.settings import Settings
from tramontane.webhooks.networks import (
    METADATA,
    METADATA_HOSTS,
    Address,
    Network,
    behind_nat64,
    range_of,
    read_address,
)
from tramontane.webhooks.target import Target, ascii_host, read_target

#: Services that nobody meant to call with a webhook, though their ports are above 1023.
KNOWN_SERVICES: Final = frozenset({2375, 3306, 5432, 6379, 9200, 10250, 11211})
_INTERNAL_NAMES: Final = (".localhost", ".internal", ".local")
_LONGEST_HEADERS: Final = 8192
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
#: They say how the message is framed, carried or signed; that is ours.
_OUR_HEADERS: Final = frozenset(
    ["host", "connection", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect", "accept-encoding"]
)
_OUR_PREFIXES: Final = ("content-", "webhook-", "x-webhook-", "proxy-")

_WHAT: Final = {
    "unspecified": "no address of anybody",
    "loopback": "this machine itself",
    "private": "an address of a private network",
    "shared": "an address inside a provider's network",
    "link_local": "an address of the local link",
    "documentation": "an address for examples",
    "benchmark": "an address for benchmarks",
    "multicast": "a multicast address",
    "nat64": "an address of a NAT64 gateway",
    "tunnel": "an address of a tunnel",
    "reserved": "a reserved address",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one rule says; `hint` names the setting that would change it."""

    rule: str
    passed: bool
    detail: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class AddressPolicy:
    """The rules, as set. The default value allows the public Internet over TLS."""

    allow_cidrs: tuple[Network, ...] = ()
    #: Lower case, in ASCII.
    allow_hosts: frozenset[str] = frozenset()
    deny_cidrs: tuple[Network, ...] = ()
    #: Ranges, both ends included; empty: 80, 443 and what is above 1023, known services excepted.
    allowed_ports: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_settings(cls, settings: Settings) -> "AddressPolicy":
        """The policy of `TRAMONTANE_WEBHOOK_…`. Raises CallbackBlocked for an allowed host that is no host."""
        return cls(
            allow_cidrs=settings.webhook_allow_cidrs,
            allow_hosts=frozenset(ascii_host(host) for host in settings.webhook_allow_hosts),
            deny_cidrs=settings.webhook_deny_cidrs,
            allowed_ports=settings.webhook_allowed_ports,
        )

    def check_url(self, url: str, field: str = "callback") -> Target:
        """The target of `url`, judged as far as that is possible before its name is resolved.

        Raises CallbackBlocked for `field`, with the rule and what would change it.
        """
        target = read_target(url, field)
        for verdict in self._judge_target(target):
            if not verdict.passed:
                raise CallbackBlocked(field, verdict.detail, rule=verdict.rule, hint=verdict.hint)
        return target

    def judge_address(self, address: str, host: str, *, secure: bool = True) -> Verdict:
        """Whether this address may be dialled for that host; `secure`: over TLS."""
        try:
            parsed = read_address(address)
        except ValueError:
            return Verdict(rule="address", passed=False, detail="the name leads to something that is no address")
        return self._judge(parsed, host, secure=secure)

    def explain(self, url: str, addresses: Sequence[str] = ()) -> tuple[Verdict, ...]:
        """What every rule says of `url`, and of the addresses that its name leads to; nothing is dialled."""
        try:
            target = read_target(url)
        except CallbackBlocked as blocked:
            return (Verdict(rule=blocked.rule, passed=False, detail=blocked.reason, hint=blocked.hint),)
        findings = (Verdict(rule="syntax", passed=True, detail=f"{target.url} can be dialled"),)
        judged = tuple(self.judge_address(address, target.host, secure=target.secure) for address in addresses)
        return findings + self._judge_target(target) + judged

    @staticmethod
    def check_headers(headers: Mapping[str, str], field: str = "headers") -> None:
        """Raises CallbackBlocked unless `headers` can be added to a delivery as they are."""
        size = sum(len(name) + len(value) + len(": \r\n") for name, value in headers.items())
        if size > _LONGEST_HEADERS:
            raise CallbackBlocked(field, f"together they may have {_LONGEST_HEADERS:,} bytes", rule="header_size")
        seen = set[str]()
        for name, value in headers.items():
            key = name.lower()
            if not _TOKEN.fullmatch(name):
                raise CallbackBlocked(field, "a header's name has letters, digits and dashes", rule="header_name")
            if key in _OUR_HEADERS or key.startswith(_OUR_PREFIXES):
                raise CallbackBlocked(f"{field}.{name}", "this header is ours to set", rule="header_reserved")
            if key in seen:
                raise CallbackBlocked(f"{field}.{name}", "it is given twice", rule="header_repeated")
            if not _VALUE.fullmatch(value):
                raise CallbackBlocked(f"{field}.{name}", "a value is printable ASCII on one line", rule="header_value")
            seen.add(key)

    def _judge_target(self, target: Target) -> tuple[Verdict, ...]:
        port = self._judge_port(target.port)
        if target.address is not None:
            return port, self.judge_address(target.address, target.host, secure=target.secure)
        return port, self._judge_name(target.host), self._judge_scheme(target)

    def _judge_port(self, port: int) -> Verdict:
        if self.allowed_ports:
            passed = any(low <= port <= high for low, high in self.allowed_ports)
        else:
            passed = port in (80, 443) or (1024 <= port <= 65535 and port not in KNOWN_SERVICES)
        if passed:
            return Verdict(rule="port", passed=True, detail=f"port {port} is allowed")
        hint = f"set TRAMONTANE_WEBHOOK_ALLOWED_PORTS={port}" if 0 < port <= 65535 else ""
        return Verdict(rule="port", passed=False, detail=f"port {port} is not allowed", hint=hint)

    def _judge_name(self, host: str) -> Verdict:
        if host in self.allow_hosts:
            return Verdict(rule="allow_hosts", passed=True, detail=f"{host} is allowed by name")
        hint = f"set TRAMONTANE_WEBHOOK_ALLOW_HOSTS={host}"
        if host == "localhost" or host.endswith(".localhost"):
            hint = f"write 127.0.0.1 and allow that address, or {hint}"
            return Verdict(rule="localhost", passed=False, detail=f"{host} is this machine itself", hint=hint)
        if host in METADATA_HOSTS:
            return Verdict(rule="metadata", passed=False, detail=f"{host} hands out credentials", hint=hint)
        if host.endswith(_INTERNAL_NAMES):
            return Verdict(rule="internal_name", passed=False, detail=f"{host} is an internal name", hint=hint)
        if "." not in host:
            return Verdict(rule="single_label", passed=False, detail=f"{host} is an internal name", hint=hint)
        return Verdict(rule="name", passed=True, detail=f"{host} may be looked up")

    def _judge_scheme(self, target: Target) -> Verdict:
        """Without TLS, only to what is allowed; a name may still lead there, which the dial will tell."""
        if target.secure or target.host in self.allow_hosts:
            return Verdict(rule="scheme", passed=True, detail=f"{target.scheme}:// is allowed")
        if self.allow_cidrs:
            return Verdict(rule="scheme", passed=True, detail="http:// is allowed to allowed addresses")
        return _https_required(f"set TRAMONTANE_WEBHOOK_ALLOW_HOSTS={target.host}")

    def _judge(self, address: Address, host: str, *, secure: bool) -> Verdict:
        # A gateway's address is judged with what lies behind it: the one must not be a way round the other.
        behind = behind_nat64(address)
        never = self._judge_never(address, host) or (behind and self._judge_never(behind, host))
        if never:
            return never
        if host in self.allow_hosts:
            return Verdict(rule="allow_hosts", passed=True, detail=f"{host} may lead to {address}")
        if _covers(self.allow_cidrs, address):
            allowed = Verdict(rule="allow_cidrs", passed=True, detail=f"{address} is allowed")
            further = self._judge(behind, host, secure=True) if behind else allowed
            return allowed if further.passed else further
        return _judge_public(address, secure=secure)

    def _judge_never(self, address: Address, host: str) -> Verdict | None:
        """The verdict that nothing can overrule, if there is one."""
        if _covers(self.deny_cidrs, address):
            hint = "TRAMONTANE_WEBHOOK_DENY_CIDRS covers it"
            return Verdict(rule="denied", passed=False, detail=f"{address} is denied", hint=hint)
        if address in METADATA and not self._names_metadata(address, host):
            detail = f"{address} hands out credentials"
            return Verdict(rule="metadata", passed=False, detail=detail, hint=_allow(address))
        return None

    def _names_metadata(self, address: Address, host: str) -> bool:
        """True when nothing less than this very address, or the name that is known for it, has been allowed."""
        if any(net.num_addresses == 1 and address == net.network_address for net in self.allow_cidrs):
            return True
        return host in self.allow_hosts and (host in METADATA_HOSTS or host == str(address))


def _judge_public(address: Address, *, secure: bool) -> Verdict:
    if rule := range_of(address):
        return Verdict(rule=rule, passed=False, detail=f"{address} is {_WHAT[rule]}", hint=_allow(address))
    if not secure:
        return _https_required(_allow(address))
    return Verdict(rule="public", passed=True, detail=f"{address} is public")


def _covers(networks: tuple[Network, ...], address: Address) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _allow(address: Address) -> str:
    return f"set TRAMONTANE_WEBHOOK_ALLOW_CIDRS={address}/{address.max_prefixlen}"


def _https_required(hint: str) -> Verdict:
    detail = "without TLS anybody on the way can read and change it"
    return Verdict(rule="https_required", passed=False, detail=detail, hint=f"use https://, or {hint}")
