"""What `webhooks listen` shows: a line for each webhook, for people or for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tramontane.cli import screen
from tramontane.ids import iso, utc_now
from tramontane.webhooks.models import Exchange


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """A webhook that was heard, checked and perhaps forwarded."""

    #: As the server handed it out: `deliveryId`, `messageId`, `event`, `attempt`, `headers`, `body`.
    delivery: dict[str, Any]
    job_id: str | None
    #: Bytes of the body.
    size: int
    #: What is wrong with its signature; empty when it is good.
    problem: str
    #: What came of forwarding it, if it was.
    answer: Exchange | None


class View:
    """What there is to be told."""

    def listening(
        self, registered: Mapping[str, Any], events: Sequence[str], forward: str | None, *, again: bool
    ) -> None:
        """A listener was registered. `again`: the server had forgotten the one before."""

    def heard(self, heard: Heard) -> None:
        """A webhook."""

    def away(self, reason: str) -> None:
        """The server no longer answers; it is waited for."""

    def back(self) -> None:
        """It answers again, and knows us."""


class JsonView(View):
    """A JSON object per line, told apart by `type`."""

    def listening(
        self, registered: Mapping[str, Any], events: Sequence[str], forward: str | None, *, again: bool
    ) -> None:
        screen.show_json({"type": "listening", **registered, "events": events, "forward": forward, "again": again})

    def heard(self, heard: Heard) -> None:
        answer = heard.answer
        told = {
            "type": "webhook",
            "at": iso(utc_now()),
            **heard.delivery,
            "jobId": heard.job_id,
            "size": heard.size,
            "verified": not heard.problem,
            "problem": heard.problem or None,
            "forwarded": answer
            and {
                "status": answer.status,
                "errorClass": answer.error_class,
                "detail": answer.detail,
                "totalMs": round(answer.timings.total, 1),
            },
        }
        screen.show_json(told)

    def away(self, reason: str) -> None:
        screen.show_json({"type": "away", "reason": reason})

    def back(self) -> None:
        screen.show_json({"type": "back"})


class PeopleView(View):
    """Coloured lines on a terminal, the same words without colours elsewhere."""

    def __init__(self) -> None:
        self._console = screen.console()

    def listening(
        self, registered: Mapping[str, Any], events: Sequence[str], forward: str | None, *, again: bool
    ) -> None:
        if again:
            self._aside(
                "the server had forgotten us; listening anew, with a new secret: what came in between is missed"
            )
        self._print(("listening", "bold"), (f" for {', '.join(events)}", ""))
        if forward:
            self._print((f"  forward  {forward}", ""))
        self._print((f"  secret   {registered['secret']}", ""))

    def heard(self, heard: Heard) -> None:
        delivery = heard.delivery
        words = [(f"{screen.clock(utc_now())}  ", "dim"), (f"{delivery['event']:<16}", _colour(delivery["event"]))]
        words += [(f"  {heard.job_id or '-':<30}", ""), (f"  {_size(heard.size):>7}", "dim")]
        words.append((f"  ✗ {heard.problem}", "red") if heard.problem else ("  ✓ signed", "green"))
        if heard.answer is not None:
            words.append(_answered(heard.answer))
        self._print(*words)

    def away(self, reason: str) -> None:
        self._aside(f"{reason}; waiting for it")

    def back(self) -> None:
        self._aside("the server is back")

    def _aside(self, text: str) -> None:
        self._print((text, "yellow"))

    def _print(self, *words: tuple[str, str]) -> None:
        from rich.text import Text

        line = Text.assemble(*((screen.plain(text), style) for text, style in words))
        self._console.print(line, soft_wrap=True)


def _answered(answer: Exchange) -> tuple[str, str]:
    came = str(answer.status) if answer.status is not None else f"{answer.error_class}: {answer.detail}"
    return f"  → {came} in {answer.timings.total:.0f} ms", "green" if answer.succeeded else "red"


def _colour(event: str) -> str:
    return {"completed": "green", "failed": "red", "cancelled": "yellow"}.get(event.rpartition(".")[2], "cyan")


def _size(number: int) -> str:
    return f"{number} B" if number < 1000 else f"{number / 1000:.1f} kB"
