"""Rate limits as Mistral is seen to keep them: a sliding window of 60 s per key and model, or a shorter one for tests.

Bursts are allowed: what counts is the sum of the last 60 seconds. A call counts as a request when it is
admitted, and its tokens when it has ended, by what it really used. All verbs take `now`, in seconds of any
clock that only goes forward.
"""

from collections import deque

SECONDS = 60.0


class Window:
    """What one key has used of one model in the last `seconds`. A limit of 0 admits nothing, ever."""

    def __init__(self, request_limit: int, token_limit: int, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self.request_limit = request_limit
        self.token_limit = token_limit
        self._uses: deque[tuple[float, int, int]] = deque()
        self._requests = 0
        self._tokens = 0

    def admit(self, now: float) -> str | None:
        """Count one more request, or name what is exhausted, `req` or `tokens`, and count nothing."""
        self._forget(now)
        if self._requests >= self.request_limit:
            return "req"
        if self._tokens >= self.token_limit:
            return "tokens"
        self._use(now, 1, 0)
        return None

    def debit(self, now: float, tokens: int) -> None:
        """Count the tokens that a call has used."""
        if tokens:
            self._use(now, 0, tokens)

    def headers(self, now: float, *, cost: int = 0) -> dict[str, str]:
        """Limits and what remains of them, once a call of `cost` tokens is debited."""
        self._forget(now)
        return {
            "x-ratelimit-limit-req-minute": str(self.request_limit),
            "x-ratelimit-remaining-req-minute": str(max(0, self.request_limit - self._requests)),
            "x-ratelimit-limit-tokens-minute": str(self.token_limit),
            "x-ratelimit-remaining-tokens-minute": str(max(0, self.token_limit - self._tokens - cost)),
            "x-ratelimit-tokens-query-cost": str(cost),
        }

    def _use(self, now: float, requests: int, tokens: int) -> None:
        self._uses.append((now, requests, tokens))
        self._requests += requests
        self._tokens += tokens

    def _forget(self, now: float) -> None:
        while self._uses and self._uses[0][0] <= now - self._seconds:
            _, requests, tokens = self._uses.popleft()
            self._requests -= requests
            self._tokens -= tokens


def exhausted(what: str, limit: int) -> dict[str, str]:
    """The headers of a 429, which keep only the pair that is used up. `what` is `req` or `tokens`."""
    return {f"x-ratelimit-limit-{what}-minute": str(limit), f"x-ratelimit-remaining-{what}-minute": "0"}
