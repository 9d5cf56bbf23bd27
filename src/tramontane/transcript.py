"""The visible text of an answer, and the events that tell of it. Offsets count UTF-16 units."""

import hashlib

from msgspec import Raw

from tramontane.continuity import Plan, Said, joint
from tramontane.mistral import Delta
from tramontane.models import NewEvent
from tramontane.seam import Joint, cut
from tramontane.wire import encode, utf16_length

_NOTHING = Said()
_FRESH = Plan(mode="restart")


class Transcript:
    """What an attempt tells: from the text that its plan keeps, delta by delta, to the final event.

    so_far, plan: of a later attempt. reason: why there is one, which is the first thing it tells.
    """

    def __init__(self, so_far: Said = _NOTHING, plan: Plan = _FRESH, *, reason: str | None = None) -> None:
        #: The answer of this attempt goes on from the text that was there; Mistral's own words are a part of it only.
        self.continued = plan.mode in ("continue", "finished")
        #: The answer has ended, whatever Mistral still says.
        self.over = False
        #: Content deltas of Mistral in the visible text: the seed's count.
        self.tokens = so_far.tokens if self.continued else 0
        self._before = so_far.text
        self._joint: Joint | None = joint(plan, so_far.text)
        #: Content deltas, and thoughts, that came while nothing could be told.
        self._held = 0
        self._thoughts: list[str] = []
        self._notes: list[NewEvent] = []
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[Raw] = []
        self._keep(plan.keep)
        if reason is not None:
            mode = "continue" if self.continued else plan.mode
            self._notes.append(_attempt(mode, plan.keep, reason))

    @property
    def content(self) -> str:
        """The visible text that events tell of so far."""
        return "".join(self._told)

    def add(self, delta: Delta) -> int:
        """Take in a delta of the first choice; returns about how many characters it adds to what waits."""
        if delta.choice != 0:
            return 0
        if self._joint is not None:
            delta = self._join(delta, self._joint)
        if delta.content:
            self.tokens += 1
            self._text.append(delta.content)
        if delta.thinking:
            self._thinking.append(delta.thinking)
        self._calls.extend(delta.tool_calls)
        told = len(delta.content) + len(delta.thinking) + sum(len(bytes(call)) for call in delta.tool_calls)
        return told + len(self._notes)

    def end(self) -> int:
        """Mistral's answer is whole: let go of what was held back. Returns the like of `add`."""
        if self._joint is None:
            return 0
        text = self._joint.end()
        return self.add(self._decide(self._joint, text, Delta()))

    def events(self) -> list[NewEvent]:
        """All that came since the last time, as events: at most one `attempt`, one `chunk` and one `tool`."""
        made, self._notes = self._notes, []
        if self._text or self._thinking:
            made.append(NewEvent("chunk", encode(self._chunk())))
        if self._calls:
            made.append(NewEvent("tool", encode({"toolCalls": self._calls})))
            self._calls = []
        return made

    def complete(self, finish_reason: str, *, attempts: int, usage: Raw | None, unreported: int) -> NewEvent:
        """The final event of a whole answer; `len` and `sha256` let a client prove that it has every character.

        usage: over all attempts. unreported: how many of them Mistral may have billed without saying so.
        """
        fields = {
            "finishReason": finish_reason,
            "len": self.length,
            "sha256": self._hash.hexdigest(),
            "totalTokens": self.tokens,
            "attempts": attempts,
            "usage": usage,
        }
        if unreported:
            fields["unreportedAttempts"] = unreported
        return NewEvent("complete", encode(fields))

    def _join(self, delta: Delta, meeting: Joint) -> Delta:
        """What of a delta may be told while the output is compared with the text that is there."""
        self._held += bool(delta.content)
        self._thoughts.append(delta.thinking)
        text = meeting.feed(delta.content) if delta.content else ""
        if delta.tool_calls and meeting.holding:
            text += meeting.end()  # a call after less than the whole text: it has become another answer
        return Delta() if meeting.holding else self._decide(meeting, text, delta)

    def _decide(self, meeting: Joint, text: str, delta: Delta) -> Delta:
        """It is clear now how the output meets the text: all that may be told of what came so far."""
        self._joint = None
        self.over = meeting.over
        told_before = meeting.keep is None and not self.continued  # a replay: readers have its thoughts
        if meeting.keep is not None:
            self.continued = False
            self.tokens = 0
            self._keep(meeting.keep)
            self._notes.append(_attempt("restart", meeting.keep, "diverged"))
        echo_only = self.continued and meeting.echoed
        # `add` counts one for the text that it is given.
        self.tokens += (bool(text) if echo_only or self.over else self._held) - bool(text)
        return Delta(text, "" if told_before else "".join(self._thoughts), delta.tool_calls)

    def _keep(self, units: int) -> None:
        """Begin with the first `units` of the text that was there."""
        text = cut(self._before, units)
        self.length = units
        self._told = [text] if text else []
        self._hash = hashlib.sha256(text.encode())

    def _chunk(self) -> dict[str, object]:
        text, thinking = "".join(self._text), "".join(self._thinking)
        self._text, self._thinking = [], []
        fields: dict[str, object] = {"off": self.length, "content": text, "tokenCount": self.tokens}
        if thinking:
            fields["thinking"] = thinking
        self.length += utf16_length(text)
        self._told.append(text)
        self._hash.update(text.encode())
        return fields


def _attempt(mode: str, keep: int, reason: str) -> NewEvent:
    return NewEvent("attempt", encode({"mode": mode, "keep": keep, "reason": reason}))
