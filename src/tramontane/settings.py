"""Settings: one frozen value, read once, from flags and the environment.

This is the only module that reads the environment. Each setting is declared once, below; the flags of the
command line and the table in docs/settings.md follow from it.
"""

import base64
import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tramontane.errors import ConfigurationError

_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")


def seconds(text: str | float) -> float:
    """Seconds in `"30s"`, `"2h"`, `"250ms"`, or a plain number of seconds.

    Raises ValueError for anything else, negative and infinite ones included.
    """
    if isinstance(text, str):
        match = _DURATION.fullmatch(text.strip())
        if match is None:
            raise ValueError(f'{text!r} is not a duration: write seconds, or "30s", "5m", "2h", "1d"')
        return float(match[1]) * _UNITS[match[2] or "s"]
    if not math.isfinite(text) or text < 0:
        raise ValueError(f"{text} is not a duration in seconds")
    return float(text)


def _integer(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError(f"must be {low} or more")
        return value

    return read


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError("must be 0 or more")
    return value


def _duration(text: str) -> float:
    value = seconds(text)
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


def _api_key(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be a key as `tramontane keys create` shows it")
    return text


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("must be between 0 (any free port) and 65535")
    return value


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// address")
    return text.rstrip("/")


def _database_url(text: str) -> str:
    if urlsplit(text).scheme not in ("postgres", "postgresql"):
        raise ValueError("must be a postgresql:// address")
    return text


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(word) for word in _words(text))


def _ports(text: str) -> tuple[tuple[int, int], ...]:
    """`443,8000-8999` as ranges."""
    ranges = []
    for word in _words(text):
        low, _, high = word.partition("-")
        ranges.append((_port(low), _port(high or low)))
    return tuple(ranges)


def _encryption_keys(text: str) -> tuple[str, ...]:
    keys = _words(text)
    for key in keys:
        try:
            good = len(base64.urlsafe_b64decode(key)) == 32
        except ValueError:
            good = False
        if not good:
            raise ValueError("must be 32 bytes as base64 (openssl rand -base64 32), the newest first, by comma")
    return tuple(key.replace("+", "-").replace("/", "_") for key in keys)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _setting(
    default: Any,
    env: str,
    read: Callable[[str], Any],
    help: str,  # noqa: A002
    *,
    secret: bool = False,
    also: str = "",
) -> Any:
    """also: another variable that means the same, asked second."""
    metadata = {"env": env, "read": read, "help": help, "secret": secret, "also": also}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set, validated. Durations are seconds."""

    mistral_api_key: str = _setting("", "MISTRAL_API_KEY", str, "key for the Mistral API", secret=True)
    mistral_server_url: str = _setting(
        "https://api.mistral.ai", "MISTRAL_SERVER_URL", _url, "where the Mistral API is, without `/v1`"
    )
    database_url: str = _setting(
        "", "DATABASE_URL", _database_url, "Postgres 16 or newer; empty: the embedded one", secret=True
    )
    data_dir: Path = _setting(Path(".tramontane"), "TRAMONTANE_DATA_DIR", Path, "embedded Postgres and `server.json`")
    url: str = _setting("", "TRAMONTANE_URL", _url, "server for the commands; empty: the one of `data_dir`")
    api_key: str = _setting("", "TRAMONTANE_API_KEY", _api_key, "key with which the commands ask it", secret=True)
    host: str = _setting("127.0.0.1", "TRAMONTANE_HOST", str, "address to listen on; any but loopback needs API keys")
    port: int = _setting(8787, "TRAMONTANE_PORT", _port, "port of the API; 0: any free one")
    simulator_port: int = _setting(
        8788, "TRAMONTANE_SIMULATOR_PORT", _port, "port of `tramontane simulator`; 0: any free one"
    )
    concurrency: int = _setting(5, "TRAMONTANE_CONCURRENCY", _integer(1), "jobs that one worker runs at a time")
    rate_limit: float = _setting(
        10.0, "TRAMONTANE_RATE_LIMIT", _number, "starts per second in the whole fleet; 0: no limit"
    )
    limit_window: float = _setting(
        60.0, "TRAMONTANE_LIMIT_WINDOW", _duration, "what Mistral counts its limits over; shorter for a simulator alone"
    )
    attempts: int = _setting(3, "TRAMONTANE_ATTEMPTS", _integer(1), "attempts of a job that names none")
    backoff: float = _setting(1.0, "TRAMONTANE_BACKOFF", _duration, "delay before the second attempt; doubles")
    job_timeout: float = _setting(600.0, "TRAMONTANE_JOB_TIMEOUT", _duration, "longest an attempt may take")
    connect_timeout: float = _setting(
        10.0, "TRAMONTANE_CONNECT_TIMEOUT", _duration, "longest wait for a connection to Mistral"
    )
    first_token_timeout: float = _setting(
        120.0, "TRAMONTANE_FIRST_TOKEN_TIMEOUT", _duration, "longest wait for the first token"
    )
    silence_timeout: float = _setting(
        30.0, "TRAMONTANE_SILENCE_TIMEOUT", _duration, "longest silence between two tokens"
    )
    heartbeat: float = _setting(
        10.0, "TRAMONTANE_HEARTBEAT", _duration, "a worker silent this long has lost its jobs; one per fleet"
    )
    poll: float = _setting(2.0, "TRAMONTANE_POLL", _duration, "longest a lost notification delays a start")
    drain_delay: float = _setting(
        0.0,
        "TRAMONTANE_DRAIN_DELAY",
        seconds,
        "at a shutdown `/readyz` answers 503 this long before the API stops listening, for a balancer to notice",
    )
    metrics_port: int = _setting(
        0, "TRAMONTANE_METRICS_PORT", _port, "where `tramontane worker` serves `/metrics` and `/readyz`; 0: nowhere"
    )
    grace: float = _setting(10.0, "TRAMONTANE_GRACE", _duration, "what running jobs get at a shutdown")
    flush: float = _setting(0.02, "TRAMONTANE_FLUSH", _duration, "text of a job is merged this long per event")
    stream_heartbeat: float = _setting(
        15.0, "TRAMONTANE_STREAM_HEARTBEAT", _duration, "silence of a stream before a comment is sent"
    )
    stream_retention: float = _setting(
        86400.0, "TRAMONTANE_STREAM_RETENTION", _duration, "events are kept this long after a job's end"
    )
    result_retention: float = _setting(
        30 * 86400.0, "TRAMONTANE_RESULT_RETENTION", _duration, "what a job asked and answered is kept after its end"
    )
    job_retention: float = _setting(
        400 * 86400.0, "TRAMONTANE_JOB_RETENTION", _duration, "its row is kept: state, usage, cost, attempts"
    )
    streams: int = _setting(10_000, "TRAMONTANE_STREAMS", _integer(1), "streams that one process serves at a time")
    streams_per_address: int = _setting(
        1000, "TRAMONTANE_STREAMS_PER_ADDRESS", _integer(1), "… of which one address may have so many"
    )
    body_limit: int = _setting(
        10 * 2**20, "TRAMONTANE_BODY_LIMIT", _integer(1), "largest request body that is read, in bytes"
    )
    cors_origins: tuple[str, ...] = _setting(
        (), "TRAMONTANE_CORS_ORIGINS", _words, "origins that may call the API from a browser, by comma"
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        "TRAMONTANE_ALLOWED_HOSTS",
        _words,
        "host names that a proxy in front passes on, by comma; any but loopback's need API keys",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting(
        _LOOPBACK,
        "TRAMONTANE_TRUSTED_PROXIES",
        _networks,
        "addresses of proxies in front, by comma: what they say in `X-Forwarded-For` is a client's address",
    )
    public_url: str = _setting(
        "", "TRAMONTANE_PUBLIC_URL", _url, "address of this server as webhooks' receivers know it, for links"
    )
    encryption_keys: tuple[str, ...] = _setting(
        (),
        "TRAMONTANE_ENCRYPTION_KEY",
        _encryption_keys,
        "32 bytes as base64, for secrets in the database; more by comma, the newest first; empty: made in `data_dir`",
        secret=True,
    )
    webhook_secret: str = _setting(
        "", "TRAMONTANE_WEBHOOK_SECRET", str, "signs callbacks that bring no secret", secret=True, also="WEBHOOK_SECRET"
    )
    webhook_allow_cidrs: tuple[IPv4Network | IPv6Network, ...] = _setting(
        (),
        "TRAMONTANE_WEBHOOK_ALLOW_CIDRS",
        _networks,
        "internal addresses that webhooks may go to, also without TLS, by comma (`127.0.0.0/8`: a laptop)",
    )
    webhook_allow_hosts: tuple[str, ...] = _setting(
        (), "TRAMONTANE_WEBHOOK_ALLOW_HOSTS", _words, "host names that webhooks may go to, wherever they lead, by comma"
    )
    webhook_deny_cidrs: tuple[IPv4Network | IPv6Network, ...] = _setting(
        (), "TRAMONTANE_WEBHOOK_DENY_CIDRS", _networks, "addresses that webhooks never go to, by comma; wins"
    )
    webhook_allowed_ports: tuple[tuple[int, int], ...] = _setting(
        (),
        "TRAMONTANE_WEBHOOK_ALLOWED_PORTS",
        _ports,
        "ports that webhooks may go to (`443,8000-8999`); empty: 80, 443 and above 1023 but for known services",
    )
    webhook_timeout: float = _setting(
        15.0, "TRAMONTANE_WEBHOOK_TIMEOUT", _duration, "longest a delivery may take, the answer's body included"
    )
    webhook_concurrency: int = _setting(
        256, "TRAMONTANE_WEBHOOK_CONCURRENCY", _integer(2), "deliveries that one worker sends at a time"
    )
    webhook_retention: float = _setting(
        30 * 86400.0, "TRAMONTANE_WEBHOOK_RETENTION", _duration, "messages and their deliveries are kept this long"
    )
    prices: str = _setting("", "TRAMONTANE_PRICES", str, "file of prices (TOML), for the cost of jobs; empty: no costs")
    queue_limit: int = _setting(
        1_000_000, "TRAMONTANE_QUEUE_LIMIT", _integer(0), "jobs that may wait in the whole fleet; 0: no limit"
    )
    log_level: str = _setting("info", "TRAMONTANE_LOG_LEVEL", str.lower, "debug, info, warning or error")

    def __post_init__(self) -> None:
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(f"TRAMONTANE_LOG_LEVEL is {self.log_level!r}: use debug, info, warning or error")

    @property
    def on_loopback(self) -> bool:
        """Whether only programs of this machine reach the address to listen on."""
        return _is_loopback(self.host)

    @property
    def behind_proxy(self) -> bool:
        """Whether a proxy lets others reach it all the same: names are allowed that are not loopback's."""
        return not all(_is_loopback(name) for name in self.allowed_hosts)


def _is_loopback(name: str) -> bool:
    try:
        return name.lower() == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def read_settings(environment: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """Settings from flags (those that are not None), then the environment, then the defaults.

    Raises ConfigurationError naming the variable or flag, and never showing a secret's value.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for setting in dataclasses.fields(Settings):
        flag = flags.pop(setting.name, None)
        text = environment.get(setting.metadata["env"], "") or environment.get(setting.metadata["also"], "")
        if flag is not None:
            values[setting.name] = flag
        elif text.strip():
            values[setting.name] = _read(setting, text.strip())
    assert not flags, f"no such settings: {', '.join(flags)}"
    return Settings(**values)


def _read(setting: "dataclasses.Field[Any]", text: str) -> Any:
    try:
        return cast("Callable[[str], Any]", setting.metadata["read"])(text)
    except ValueError as error:
        shown = "" if setting.metadata["secret"] else f" {text!r}"
        reason = "" if setting.metadata["secret"] and not str(error).startswith("must") else f": {error}"
        raise ConfigurationError(f"{setting.metadata['env']} has a wrong value{shown}{reason}") from None
