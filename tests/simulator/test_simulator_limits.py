"""Rate limits on a clock that only the test moves."""

from chatting import Reply, chatting

from tramontane.simulator import Behaviour, Simulator
from tramontane.simulator.windows import Window


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def limits(reply: Reply) -> dict[str, str]:
    start = "x-ratelimit-"
    return {k.lower().removeprefix(start): v for k, v in reply.headers.items() if k.lower().startswith(start)}


async def test_the_headers_tell_limits_rest_and_cost() -> None:
    async with Simulator(request_limit=10, token_limit=1000, now=Clock()) as simulator, chatting(simulator) as chat:
        whole = await chat("Say: one two")
        streamed = await chat("Say: one two", stream=True)

    cost = whole.json["usage"]["total_tokens"]
    assert limits(whole) == {
        "limit-req-minute": "10",
        "remaining-req-minute": "9",
        "limit-tokens-minute": "1000",
        "remaining-tokens-minute": str(1000 - cost),
        "tokens-query-cost": str(cost),
    }
    assert limits(streamed)["remaining-tokens-minute"] == str(1000 - 2 * cost)


async def test_a_burst_over_the_limit_is_refused_until_the_window_has_slid_on() -> None:
    clock = Clock()
    async with Simulator(request_limit=4, now=clock) as simulator, chatting(simulator) as chat:
        burst = [(await chat()).status for _ in range(8)]
        clock.time += 59.9
        refused = await chat()
        clock.time += 0.2
        again = await chat()

    assert burst == [200] * 4 + [429] * 4
    assert refused.status == 429
    assert limits(refused) == {"limit-req-minute": "4", "remaining-req-minute": "0"}
    assert refused.json["code"] == "1300"
    assert again.status == 200


async def test_tokens_are_debited_by_what_was_really_used() -> None:
    async with Simulator(token_limit=20, now=Clock()) as simulator, chatting(simulator) as chat:
        small = await chat("Say: ok", max_tokens=1000)
        large = await chat("Say: " + "wind " * 30)
        refused = await chat()

    assert (small.status, large.status, refused.status) == (200, 200, 429)
    assert limits(refused) == {"limit-tokens-minute": "20", "remaining-tokens-minute": "0"}


async def test_a_cut_call_is_debited_what_was_made_before_the_cut() -> None:
    async with Simulator(token_limit=1000, now=Clock()) as simulator, chatting(simulator) as chat:
        await chat(stream=True, how="cut_after=11")
        after = await chat("Say: ok")

    (cut, ok) = simulator.ledger
    assert cut.completion_tokens == 10
    used = cut.prompt_tokens + cut.completion_tokens + ok.prompt_tokens + ok.completion_tokens
    assert limits(after)["remaining-tokens-minute"] == str(1000 - used)


async def test_keys_and_models_have_windows_of_their_own() -> None:
    async with Simulator(request_limit=1, now=Clock()) as simulator:
        async with chatting(simulator, key="one") as chat:
            first = [(await chat()).status, (await chat()).status, (await chat(model="mistral-large-latest")).status]
        async with chatting(simulator, key="two") as chat:
            second = (await chat()).status

    assert first == [200, 429, 200]
    assert second == 200


async def test_a_limit_of_zero_is_told_as_zero() -> None:
    async with Simulator(request_limit=0) as simulator, chatting(simulator) as chat:
        by_limit = await chat()
    async with Simulator() as simulator, chatting(simulator) as chat:
        by_behaviour = await chat(how="zero_allowance")

    for reply in (by_limit, by_behaviour):
        assert reply.status == 429
        assert limits(reply) == {"limit-req-minute": "0", "remaining-req-minute": "0"}


async def test_a_storm_of_429_lasts_as_long_as_it_is_scripted() -> None:
    async with Simulator() as simulator, chatting(simulator) as chat:
        simulator.script(*[Behaviour(status=429, retry_after=1.5)] * 3)
        replies = [await chat() for _ in range(4)]

    assert [reply.status for reply in replies] == [429, 429, 429, 200]
    assert [reply.headers.get("retry-after") for reply in replies] == ["1.5", "1.5", "1.5", None]
    assert replies[0].json == {
        "object": "error",
        "message": "Rate limit exceeded",
        "type": "rate_limited",
        "param": None,
        "code": "1300",
        "raw_status_code": 429,
    }


async def test_a_gateway_refuses_in_its_own_words_without_retry_after() -> None:
    gateway = Behaviour(error_body="gateway")
    async with Simulator(request_limit=0, behaviour=gateway) as simulator, chatting(simulator) as chat:
        reply = await chat()

    assert reply.json == {"message": "Requests rate limit exceeded"}
    assert "retry-after" not in reply.headers


def test_a_window_forgets_each_use_sixty_seconds_later() -> None:
    window = Window(request_limit=2, token_limit=100)

    assert window.admit(0.0) is None
    assert window.admit(30.0) is None
    window.debit(31.0, 150)
    assert window.admit(59.0) == "req"
    assert window.admit(60.0) == "tokens"
    assert window.admit(91.0) is None
    assert window.headers(91.0)["x-ratelimit-remaining-tokens-minute"] == "100"
