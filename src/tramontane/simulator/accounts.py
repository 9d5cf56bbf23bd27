"""Who calls, what they may still use, and which of their prompts are cached."""

import hashlib
from collections.abc import Collection

from tramontane.simulator.refusals import Refusal
from tramontane.simulator.requests import ChatRequest
from tramontane.simulator.windows import SECONDS, Window

# A prompt is cached in blocks of 64 tokens, at four bytes to the token.
_BLOCK_TOKENS, _BLOCK_BYTES = 64, 256


class Accounts:
    """The keys that may call, each with a window per model. Without `api_keys` any key that is not empty will do."""

    def __init__(
        self, *, api_keys: Collection[str] | None, request_limit: int, token_limit: int, window: float = SECONDS
    ) -> None:
        self._allowed = None if api_keys is None else {fingerprint(key) for key in api_keys}
        self._limits = request_limit, token_limit
        self._seconds = window
        self._windows: dict[tuple[str, str], Window] = {}
        self._prompts: dict[tuple[str, str, str], bytes] = {}

    def authenticate(self, authorization: str) -> str:
        """The fingerprint of the key in an Authorization header. Raises Refusal (401)."""
        key = bearer(authorization)
        if not key:
            raise Refusal(401, {"detail": "Unauthorized"})
        if self._allowed is not None and fingerprint(key) not in self._allowed:
            raise Refusal(401, {"message": "Unauthorized", "request_id": fingerprint(authorization)})
        return fingerprint(key)

    def window(self, key: str, model: str) -> Window:
        """The rate limits of that key for that model."""
        return self._windows.setdefault((key, model), Window(*self._limits, seconds=self._seconds))

    def cached_tokens(self, key: str, request: ChatRequest) -> int:
        """How many prompt tokens are in the cache that `prompt_cache_key` names; the prompt takes their place."""
        if not request.prompt_cache_key:
            return 0
        place = (key, request.model, request.prompt_cache_key)
        before, prompt = self._prompts.get(place, b""), request.prompt
        self._prompts[place] = prompt
        shorter = min(len(before), len(prompt), request.prompt_tokens * 4)
        blocks = 0
        while (end := (blocks + 1) * _BLOCK_BYTES) <= shorter and before[:end] == prompt[:end]:
            blocks += 1
        return blocks * _BLOCK_TOKENS


def bearer(authorization: str) -> str:
    """The key in an Authorization header, empty when there is none."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def fingerprint(key: str) -> str:
    """What stands for a key in the ledger: 12 hex digits, from which nobody gets the key."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]
