"""The official TypeScript SDK, unmodified, against the simulator: what it answers and what it throws."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tramontane.simulator import Simulator

HERE = Path(__file__).parent
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def node() -> str:
    """The path of Node. Without it, or without the SDK, the tests skip; in CI they fail."""
    found = shutil.which("node")
    if found and (HERE / "node_modules/@mistralai/mistralai").is_dir():
        return found
    missing = "the TypeScript SDK is not installed (npm ci in tests/sdk)" if found else "node is not on the PATH"
    if "CI" in os.environ:  # noqa: TID251  # the one thing a test asks of its surroundings
        pytest.fail(missing)
    pytest.skip(missing)


def call(
    how: str | None = None, *, stream: bool = True, key: str = "k", timeout_ms: int = 10_000, **request: Any
) -> dict[str, Any]:
    """A call for chat.mjs, which says three words unless `request` says otherwise."""
    messages = [{"role": "user", "content": "Say: one two three"}]
    request = {"model": "mistral-small-latest", "messages": messages, **request}
    return {"how": how, "stream": stream, "key": key, "request": request, "timeoutMs": timeout_ms}


async def run(simulator: Simulator, *calls: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The results of the calls, one after another, and the models that are listed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        node(), str(HERE / "chat.mjs"), simulator.url, stdin=pipe, stdout=pipe
    )
    output, _ = await process.communicate(msgspec.json.encode(calls))
    assert process.returncode == 0
    answer = msgspec.json.decode(output)
    return answer["results"], answer["models"]


def error_of(result: dict[str, Any]) -> str | None:
    """The class of what was thrown; of a TypeError, which may be anything, its message too."""
    error: str | None = result.get("error")
    return f"{error}: {result['message']}" if error == "TypeError" else error


async def test_it_completes_and_streams_the_same_answer(simulator: Simulator) -> None:
    (streamed, whole), models = await run(simulator, call(), call(stream=False))

    assert streamed["text"] == whole["text"] == "one two three"
    assert streamed["finishReason"] == whole["finishReason"] == "stop"
    assert streamed["usage"] == whole["usage"]
    assert whole["usage"]["completionTokens"] == 3
    assert "mistral-small-2603" in models


async def test_it_reads_tools_thinking_prefixes_and_rough_framing(simulator: Simulator) -> None:
    text = "Sète — été ☀️ 日本語"
    question = [{"role": "user", "content": f"Say: {text}"}]
    prefix = {"role": "assistant", "content": "Sète —", "prefix": True}
    (pieces, whole, thinking, rough, continued, parts), _ = await run(
        simulator,
        call("tool_calls=fragments", tools=[TOOL], toolChoice="any"),
        call(stream=False, tools=[TOOL], toolChoice="any"),
        call(model="magistral-small-latest"),
        call("crlf, comments, split_frames", messages=question),
        call(messages=[*question, prefix]),
        call("content=parts"),
    )

    arguments = "".join(piece["function"]["arguments"] for piece in pieces["toolCalls"])
    assert arguments == whole["toolCalls"][0]["function"]["arguments"]
    assert (set(thinking["parts"]), thinking["text"]) == ({"thinking"}, "one two three")
    assert rough["text"] == continued["text"] == text
    assert parts["parts"] == ["text", "text", "text", "reference", "UNKNOWN"]


# The fault, what a stream throws, what a whole answer throws; None where the SDK notices nothing.
FAULTS: list[tuple[str, str | None, str | None]] = [
    ("end_after=3", None, None),
    ("done=false", None, None),
    ("usage=false", None, None),
    ("finish_reason=tempest", None, None),
    ("deprecated", None, None),
    ("cut_after=0", "ConnectionError", "ConnectionError"),
    ("cut_after=2", "TypeError: terminated", "ConnectionError"),
    ("silence_after=2", "DOMException", "RequestTimeoutError"),
    ("malformed_after=2", "ZodError", "SyntaxError"),
    ("error_after=2", "ZodError", "ResponseValidationError"),
    ("content_type=text/plain", "SDKError", "SDKError"),
    ("status=400", "SDKError", "SDKError"),
    ("status=401", "SDKError", "SDKError"),
    ("status=422", "HTTPValidationError", "HTTPValidationError"),
    ("status=422, error_body=envelope", "HTTPValidationError", "HTTPValidationError"),
    ("status=422, error_body=string", "ResponseValidationError", "ResponseValidationError"),
    ("status=429", "SDKError", "SDKError"),
    ("status=429, error_body=gateway", "SDKError", "SDKError"),
    ("zero_allowance", "SDKError", "SDKError"),
    ("status=503, error_body=html", "SDKError", "SDKError"),
]


async def test_each_fault_throws_what_it_throws_against_the_real_api(simulator: Simulator) -> None:
    calls = [
        call(how, stream=stream, timeout_ms=500 if "silence" in how else 10_000)
        for how, _, _ in FAULTS
        for stream in (True, False)
    ]
    results, _ = await run(simulator, *calls)

    thrown = [error_of(result) for result in results]
    assert list(zip((how for how, _, _ in FAULTS), thrown[::2], thrown[1::2], strict=True)) == FAULTS
    assert results[0]["text"] == "one two"
    assert results[0]["finishReason"] is None


async def test_a_wrong_key_is_refused_with_401() -> None:
    async with Simulator(api_keys=["k"]) as simulator:
        (refused,), _ = await run(simulator, call(key="wrong"))

    assert (refused["error"], refused["status"]) == ("SDKError", 401)
