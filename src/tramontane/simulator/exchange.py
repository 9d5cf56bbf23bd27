"""One call, from its request to the end of its answer, with whatever goes wrong on the way."""

import asyncio
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

from aiohttp import web

from tramontane.errors import InvalidInput
from tramontane.ids import utc_now
from tramontane.simulator import frames
from tramontane.simulator.accounts import Accounts, bearer, fingerprint
from tramontane.simulator.answers import compose
from tramontane.simulator.behaviour import HEADER, Behaviour
from tramontane.simulator.frames import Completion, Frame
from tramontane.simulator.ledger import Ledger
from tramontane.simulator.refusals import Refusal, bad_request, on_request, stream_error
from tramontane.simulator.requests import parse_body, parse_request
from tramontane.simulator.windows import Window, exhausted

# Frames per write when nothing sets a pace: few enough that other calls get their turn.
_BATCH = 64
# A prime, so that the pieces of a split frame fall on every kind of boundary.
_PIECE = 61


class Exchange:
    """The state of one call. `run` is its whole life; the ledger hears of every step."""

    def __init__(
        self,
        request: web.Request,
        *,
        accounts: Accounts,
        ledger: Ledger,
        behaviour: Callable[[str | None], Behaviour],
        seed: int,
        now: Callable[[], float],
    ) -> None:
        self._request = request
        self._accounts = accounts
        self._ledger = ledger
        self._choose = behaviour
        self._seed = seed
        self._now = now
        key = bearer(request.headers.get("authorization", ""))
        self._call = ledger.begin(key=fingerprint(key) if key else "", connection=_peer(request), now=now())
        self._chance = random.Random(f"{seed}/{self._call.number}")  # noqa: S311  # repeatable is the point
        self._headers = {"mistral-correlation-id": str(UUID(int=self._chance.getrandbits(128), version=4))}
        self._window: Window | None = None

    async def run(self) -> web.StreamResponse:
        """Answer, refuse, or fail as the behaviour wants it."""
        try:
            return await self._answer()
        except Refusal as refusal:
            self._ledger_end("refused", status=refusal.status)
            return self._refused(refusal)
        except ConnectionError:
            # A write found the client gone before the cancellation came.
            self._ledger_end("disconnected")
            return web.Response()
        except asyncio.CancelledError:
            self._ledger_end("disconnected")
            raise
        finally:
            self._ledger_end("failed")

    def stop(self) -> None:
        """The simulator is closing: whatever is still running ends now."""
        self._ledger_end("stopped")

    async def _answer(self) -> web.StreamResponse:
        key = self._accounts.authenticate(self._request.headers.get("authorization", ""))
        behaviour = self._behaviour()
        body = parse_body(await self._request.read())
        self._note(request=body, model=str(body.get("model", "")), stream=body.get("stream") is True)
        if behaviour.status is not None or behaviour.zero_allowance:
            await asyncio.sleep(behaviour.latency)
            raise self._asked_refusal(behaviour, body, key)
        request = parse_request(body)
        self._admit(key, request.model, behaviour, body)
        completion = Completion(
            id=f"{self._chance.getrandbits(128):032x}",
            created=int(utc_now().timestamp()),
            model=request.model,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=self._accounts.cached_tokens(key, request),
            answers=tuple(compose(request, behaviour, self._seed, index) for index in range(request.n)),
        )
        self._note(prompt_tokens=completion.prompt_tokens, cached_tokens=completion.cached_tokens)
        self._announce(completion, behaviour)
        await asyncio.sleep(behaviour.latency)
        if behaviour.fault == ("cut_after", 0):
            return self._cut(web.Response())
        return await (self._stream if request.stream else self._whole)(completion, behaviour)

    def _behaviour(self) -> Behaviour:
        try:
            return self._choose(self._request.headers.get(HEADER))
        except InvalidInput as error:
            raise bad_request(f"{HEADER}: {error}", "invalid_request_error", "3000") from None

    def _admit(self, key: str, model: str, behaviour: Behaviour, body: dict[str, Any]) -> None:
        window = self._accounts.window(key, model)
        what = window.admit(self._now())
        if what is not None:
            limit = window.request_limit if what == "req" else window.token_limit
            raise self._too_many(behaviour, body, what, limit)
        self._window = window

    def _asked_refusal(self, behaviour: Behaviour, body: dict[str, Any], key: str) -> Refusal:
        if behaviour.zero_allowance:
            return self._too_many(behaviour, body, "req", 0)
        if behaviour.status == 429:
            limit = self._accounts.window(key, str(body.get("model", ""))).request_limit
            return self._too_many(behaviour, body, "req", limit)
        refusal = on_request(behaviour.status or 500, behaviour.error_body, body)
        if refusal.status >= 500:
            refusal.headers |= _retry_after(behaviour)
        return refusal

    def _too_many(self, behaviour: Behaviour, body: dict[str, Any], what: str, limit: int) -> Refusal:
        refusal = on_request(429, behaviour.error_body, body)
        refusal.headers |= exhausted(what, limit) | _retry_after(behaviour)
        return refusal

    def _refused(self, refusal: Refusal) -> web.Response:
        body = refusal.body.encode() if isinstance(refusal.body, str) else frames.encode(refusal.body)
        headers = {"content-type": refusal.content_type, **self._headers, **refusal.headers}
        return web.Response(status=refusal.status, body=body, headers=headers)

    def _announce(self, completion: Completion, behaviour: Behaviour) -> None:
        assert self._window is not None
        cost = completion.prompt_tokens + completion.completion_tokens
        self._headers |= self._window.headers(self._now(), cost=cost)
        if behaviour.deprecated:
            self._headers["x-model-deprecation-timestamp"] = "2027-03-31T12:00:00Z"

    async def _whole(self, completion: Completion, behaviour: Behaviour) -> web.StreamResponse:
        body = frames.whole(completion, behaviour)
        total = completion.completion_tokens
        fault, after = behaviour.fault or ("", total)
        struck = after < total and fault != "end_after"
        made, start, end = 0, self._loop_time(), after if struck else total
        while made < end:
            made = min(await _due(behaviour, start, made), end)
            self._note(completion_tokens=made)
        if struck and fault in ("cut_after", "torn_after"):
            return self._cut(web.Response())
        if struck and fault == "silence_after":
            await asyncio.Event().wait()
        if struck:
            body = frames.encode(stream_error()) if fault == "error_after" else body[: len(body) // 2]
        self._ledger_end(fault.removesuffix("_after") if struck else "complete", status=200)
        kind = behaviour.content_type or "application/json"
        return web.Response(body=body, headers={"content-type": kind, **self._headers})

    async def _stream(self, completion: Completion, behaviour: Behaviour) -> web.StreamResponse:
        planned = frames.stream(completion, behaviour, self._chance)
        fault, after = behaviour.fault or ("", len(planned))
        struck = after < len(planned)
        kind = behaviour.content_type or "text/event-stream; charset=utf-8"
        response = web.StreamResponse(headers={"content-type": kind, **self._headers})
        await response.prepare(self._request)
        self._note(status=200)
        await self._send(response, planned[:after], behaviour)
        if struck and fault == "torn_after":
            await _write(response, planned[after].data[: len(planned[after].data) // 2], behaviour)
        if struck and fault in ("cut_after", "torn_after"):
            return self._cut(response)
        if struck and fault == "silence_after":
            await asyncio.Event().wait()
        if struck and fault == "malformed_after":
            await _write(response, frames.MALFORMED, behaviour)
        elif struck and fault == "error_after":
            await _write(response, b"data: %b\n\n" % frames.encode(stream_error()), behaviour)
        elif not struck and behaviour.done:
            await _write(response, frames.DONE, behaviour)
        self._ledger_end(fault.removesuffix("_after") if struck else "complete")
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, planned: list[Frame], behaviour: Behaviour) -> None:
        sent, start = 0, self._loop_time()
        while sent < len(planned):
            due = min(await _due(behaviour, start, sent), len(planned))
            await _write(response, b"".join(frame.data for frame in planned[sent:due]), behaviour)
            sent = due
            self._note(completion_tokens=planned[sent - 1].tokens, chunks=sent)

    def _cut(self, response: web.StreamResponse) -> web.StreamResponse:
        """Close the connection without an end of the body; what was written before still arrives."""
        self._ledger_end("cut")
        if self._request.transport is not None:
            self._request.transport.close()
        return response

    def _note(self, **changes: Any) -> None:
        self._call = self._ledger.change(self._call, **changes)

    def _ledger_end(self, outcome: str, **changes: Any) -> None:
        if self._call.outcome != "running":
            return
        now = self._now()
        self._note(outcome=outcome, ended=now, **changes)
        if self._window is not None:
            self._window.debit(now, self._call.prompt_tokens + self._call.completion_tokens)

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()


async def _due(behaviour: Behaviour, start: float, sent: int) -> int:
    """Wait until more than `sent` units are due at the behaviour's pace, and say how many are by now."""
    pace = behaviour.tokens_per_second
    if pace is None:
        await asyncio.sleep(0)
        return sent + _BATCH
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, start + sent / pace - loop.time()))
    return max(sent, int((loop.time() - start) * pace)) + 1


async def _write(response: web.StreamResponse, data: bytes, behaviour: Behaviour) -> None:
    if behaviour.crlf:
        data = data.replace(b"\n", b"\r\n")
    if not behaviour.split_frames:
        await response.write(data)
        return
    for at in range(0, len(data), _PIECE):
        await response.write(data[at : at + _PIECE])
        await asyncio.sleep(0)


def _retry_after(behaviour: Behaviour) -> dict[str, str]:
    return {} if behaviour.retry_after is None else {"retry-after": f"{behaviour.retry_after:g}"}


def _peer(request: web.Request) -> str:
    name = request.transport.get_extra_info("peername") if request.transport else None
    return f"{name[0]}:{name[1]}" if name else ""
