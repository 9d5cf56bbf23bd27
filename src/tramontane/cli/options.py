"""The options that several commands share, and how their texts become settings.

Every value comes as a string and is read by the setting it belongs to, so that a flag and its environment variable
take the same and refuse the same. The help follows from the settings as well.
"""

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from tramontane.errors import ConfigurationError, InvalidInput
from tramontane.ids import iso, utc_now
from tramontane.settings import Settings, read_settings, seconds

_SETTINGS = {setting.name: setting for setting in dataclasses.fields(Settings)}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def setting(name: str, metavar: str, flag: str | None = None) -> Any:
    """The option for a setting. Its flag is the setting's name, unless the command says it shorter."""
    declared = _SETTINGS[name]
    default = f"; {declared.default}" if declared.default != "" else ""
    described = f"{declared.metadata['help']} [{declared.metadata['env']}{default}]"
    return typer.Option(flag or _flag(name), metavar=metavar, help=described)


DataDir = Annotated[str | None, setting("data_dir", "DIR")]
Host = Annotated[str | None, setting("host", "ADDRESS")]
Port = Annotated[str | None, setting("port", "PORT")]
Concurrency = Annotated[str | None, setting("concurrency", "N")]
RateLimit = Annotated[str | None, setting("rate_limit", "N")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, for scripts")]
LogJson = Annotated[bool, typer.Option("--log-json", help="log lines as JSON, and no greeting")]
Simulate = Annotated[bool, typer.Option("--simulator", help="a simulated Mistral in this process: no key is needed")]
Model = Annotated[str, typer.Option("--model", metavar="NAME", help="model that answers")]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="what to ask; `-` reads standard input")]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="instructions that come first")]
Priority = Annotated[str | None, typer.Option("--priority", metavar="N", help="higher goes first; 0 when not given")]
Attempts = Annotated[
    str | None, typer.Option("--attempts", metavar="N", help="how often it may fail before it stays so")
]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help='longest an attempt may take, e.g. "90s"')
]
RequestId = Annotated[str | None, typer.Option("--request-id", metavar="TEXT", help="your own name for it")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="a job's id, `job_…`")]
Callback = Annotated[str | None, typer.Option("--callback", metavar="URL", help="tell the end of it there, signed")]
CallbackSecret = Annotated[
    str | None, typer.Option(metavar="SECRET", help="signs the callback; the server's own when not given")
]
Metadata = Annotated[list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE", help="may be repeated")]


def settings_from(**flags: str | None) -> Settings:
    """Settings from flags, then the environment. Raises ConfigurationError naming the flag or variable."""
    values: dict[str, Any] = {name: _read(name, text) for name, text in flags.items() if text is not None}
    return read_settings(**values)


def number(flag: str, text: str | None) -> int | None:
    """A whole number. Raises InvalidInput naming the flag."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(flag, f"must be a whole number, not {text!r}") from None


def pairs(flag: str, texts: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE`, any number of times. Raises InvalidInput naming the flag."""
    found = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InvalidInput(flag, f"must be NAME=VALUE, not {text!r}")
        found[name] = value
    return found


def words(text: str | None) -> list[str] | None:
    """`one,two` as a list; None stays None."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def moment(flag: str, text: str | None) -> str | None:
    """A time of our JSON, from one (`2026-11-22T06:00:00Z`) or from how long ago it was (`2h`).

    Raises InvalidInput naming the flag.
    """
    if text is None:
        return None
    try:
        return iso(utc_now() - timedelta(seconds=seconds(text)))
    except (ValueError, OverflowError):
        pass
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return iso(at)
    except (ValueError, OverflowError):
        pass
    raise InvalidInput(flag, f'must be how long ago ("30m", "2h") or a time with its zone, not {text!r}')


def callback_from(url: str | None, secret: str | None) -> dict[str, str] | None:
    """The `callback` of a job. Raises InvalidInput for a secret without a URL."""
    if url is None:
        if secret is not None:
            raise InvalidInput("--callback-secret", "signs nothing without --callback")
        return None
    return {"url": url} | ({"secret": secret} if secret is not None else {})


def job_options(
    *,
    priority: str | None,
    deadline: str | None,
    attempts: str | None,
    timeout: str | None,
    request_id: str | None,
    metadata: list[str] | None,
    callback: str | None,
    callback_secret: str | None,
) -> dict[str, Any]:
    """Our options of a job, as far as they are given. Raises InvalidInput naming the flag."""
    options = {
        "priority": number("--priority", priority),
        "deadline": deadline,
        "attempts": number("--attempts", attempts),
        "timeout": timeout,
        "requestId": request_id,
        "metadata": pairs("--metadata", metadata) or None,
        "callback": callback_from(callback, callback_secret),
    }
    return {name: value for name, value in options.items() if value is not None}


def prompt_from(text: str) -> str:
    """The prompt itself, or standard input for `-`. Raises InvalidInput for an empty one."""
    if text == "-":
        text = typer.get_text_stream("stdin").read()
    if not text.strip():
        raise InvalidInput("PROMPT", "is empty")
    return text


def messages_from(prompt: str, system: str | None) -> list[dict[str, str]]:
    """Mistral's messages."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}]


def _read(name: str, text: str) -> object:
    read = cast("Callable[[str], object]", _SETTINGS[name].metadata["read"])
    try:
        return read(text)
    except ValueError as error:
        reason = str(error)
        if "literal" in reason or "convert" in reason:
            reason = f"must be a number, not {text!r}"
        raise ConfigurationError(f"{_flag(name)}: {reason}") from None


class _AsItCame:
    """Takes the place of Typer's coercion, which would load pydantic for what are strings and flags anyway."""

    @staticmethod
    def coerce(value: object, **_: object) -> object:
        return value


class QuickCommand(TyperCommand):
    """A command whose options are strings and flags: it starts in a third of the time."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, which take what was typed as it is."""
        return _quick(super().get_params(ctx))


class QuickGroup(TyperGroup):
    """The same for a group of commands."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, which take what was typed as it is."""
        return _quick(super().get_params(ctx))


def _quick(parameters: Any) -> Any:
    for parameter in parameters:
        # Where a later Typer knows no such attribute, it coerces strings to strings: slower, and the same.
        parameter._runtime_param = _AsItCame
    return parameters
