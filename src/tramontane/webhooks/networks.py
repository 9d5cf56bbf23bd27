"""Which addresses are not of the public Internet, and why: the special-purpose ranges, each with a name.

`ipaddress.is_global` does not answer our question: it calls multicast, NAT64 of 127.0.0.1 and 6to4 of 10.0.0.1
global. Hence lists of our own, after the registries of IANA (RFC 6890 and its successors).
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# The first one that matches names the address, so what lies inside another comes before it.
_RANGES: Final = (
    ("unspecified", "0.0.0.0/8 ::/128"),
    ("loopback", "127.0.0.0/8 ::1/128"),
    ("private", "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10"),
    ("shared", "100.64.0.0/10"),
    ("link_local", "169.254.0.0/16 fe80::/10"),
    ("documentation", "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20"),
    ("benchmark", "198.18.0.0/15"),
    ("multicast", "224.0.0.0/4 ff00::/8"),
    ("nat64", "64:ff9b::/96 64:ff9b:1::/48"),
    ("tunnel", "192.88.99.0/24 2001::/32 2002::/16"),
    (
        "reserved",
        "192.0.0.0/24 192.31.196.0/24 192.52.193.0/24 192.175.48.0/24 240.0.0.0/4 2001::/23 2620:4f:8000::/48",
    ),
)
_DENIED: Final[tuple[tuple[str, Network], ...]] = tuple(
    (rule, ip_network(prefix)) for rule, prefixes in _RANGES for prefix in prefixes.split()
)
#: All of IPv6 that has ever been given out for the public; what lies elsewhere is denied without being listed.
_PUBLIC_IPV6: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")

#: Where clouds hand out credentials to whoever asks from inside: no range that somebody allows shall include them.
METADATA: Final[frozenset[Address]] = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # most clouds
        "169.254.170.2",  # AWS: containers
        "169.254.170.23",  # AWS: pods
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",  # Google
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure; it looks public
        "192.0.0.192",  # Oracle
    )
)
METADATA_HOSTS: Final = frozenset({"metadata.google.internal", "metadata.goog"})


def read_address(text: str) -> Address:
    """The address of `text` as it counts: without its zone, and an IPv4 address that is mapped into IPv6 as itself.

    Raises ValueError for what is no address in its usual form; `127.1` and `2130706433` are none.
    """
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def range_of(address: Address) -> str | None:
    """The name of the special range that `address` lies in, None for the public Internet."""
    for rule, network in _DENIED:
        if address.version == network.version and address in network:
            return rule
    return "reserved" if address.version == 6 and address not in _PUBLIC_IPV6 else None


def behind_nat64(address: Address) -> IPv4Address | None:
    """The IPv4 address that a NAT64 gateway would call for this one, None when it is not of that kind."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None
