"""How the log is cut into frames for a reader that is behind: fewer and larger ones, and none skipped or told twice.

Frames tile the log. Each covers the events from `from` to `seq`: adjacent chunks of one attempt that were merged, or
chunks that nobody needs any more, with what comes after them. Two readers may see different tilings of one text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from tramontane import sse
from tramontane.models import Event
from tramontane.wire import encode, utf16_length

#: Bytes of one write to a reader; after it others have their turn.
WRITE: Final = 16 * 1024
#: Bytes of a chunk's body that are not its content, at least; and of a merged frame, at most.
_AROUND_CONTENT: Final = len('{"off":0,"content":"","tokenCount":0}')
_AROUND_FRAME: Final = 256


class Chunk(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """The body of a `chunk` as we know it. Of one with more in it nothing may be lost, so it is not merged."""

    off: int
    content: str
    token_count: int
    thinking: str = ""

    @property
    def end(self) -> int:
        """Length of the text with this content, in UTF-16 units."""
        return self.off + utf16_length(self.content)


@dataclass(frozen=True, slots=True)
class Restart:
    """An `attempt` event that voids what was told before it, from `keep` on."""

    seq: int
    keep: int


class Write(NamedTuple):
    """One write to a reader. `block` is empty when all that was looked at is void."""

    block: bytes
    #: How many events it has used up.
    taken: int
    #: seq of the last one that a frame tells of.
    told: int


_decode = msgspec.json.Decoder(Chunk).decode


def chunk_of(event: Event) -> Chunk | None:
    """A chunk that can be merged with its like."""
    if event.type != "chunk":
        return None
    try:
        return _decode(event.body)
    except msgspec.DecodeError:
        return None


def joined(
    events: Sequence[Event], told: int, frame: Callable[[Event, int], bytes], *, restarts: Sequence[Restart] = ()
) -> Write:
    """A write of as many events as it may hold, at least one frame, with adjacent chunks merged.

    told: what the reader has; `frame` makes the frame of an event that covers all from a number on. With `restarts`,
    chunks that one of them voids wholly are left out.
    """
    frames: list[bytes] = []
    size = taken = 0
    while taken < len(events):
        event, count = events[taken], 1
        chunk = chunk_of(event)
        if chunk is not None and _is_void(event, chunk, restarts):
            taken += 1
            continue
        if chunk is not None:
            event, count = _merged(events, taken, chunk, WRITE - size - _AROUND_FRAME, restarts)
        one = frame(event, told + 1)
        if frames and size + len(one) > WRITE:
            break
        frames.append(one)
        size += len(one)
        taken += count
        told = event.seq
    return Write(b"".join(frames), taken, told)


def single(events: Sequence[Event], told: int, frame: Callable[[Event, int], bytes]) -> Write:
    """The same with a frame for each event."""
    frames: list[bytes] = []
    size = 0
    for event in events:
        one = frame(event, told + 1)
        if frames and size + len(one) > WRITE:
            break
        frames.append(one)
        size += len(one)
        told = event.seq
    return Write(b"".join(frames), len(frames), told)


def _is_void(event: Event, chunk: Chunk, restarts: Sequence[Restart]) -> bool:
    return any(restart.seq > event.seq and restart.keep <= chunk.off for restart in restarts)


def _merged(
    events: Sequence[Event], start: int, first: Chunk, room: int, restarts: Sequence[Restart]
) -> tuple[Event, int]:
    """The chunk at `start` with those that follow it, as one event, and how many they are."""
    attempt, last, end = events[start].attempt, first, first.end
    contents, thoughts = [first.content], [first.thinking]
    room -= len(events[start].body)
    for index in range(start + 1, len(events)):
        event = events[index]
        room -= len(event.body) - _AROUND_CONTENT
        if room < 0 or event.attempt != attempt:
            break
        chunk = chunk_of(event)
        # Text that does not follow on is the reader's to judge.
        if chunk is None or chunk.off != end or (restarts and _is_void(event, chunk, restarts)):
            break
        contents.append(chunk.content)
        thoughts.append(chunk.thinking)
        last, end = chunk, end + utf16_length(chunk.content)
    count = len(contents)
    if count == 1:
        return events[start], 1
    body = encode(Chunk(first.off, "".join(contents), last.token_count, "".join(thoughts)))
    return Event(seq=events[start + count - 1].seq, attempt=attempt, type="chunk", body=body), count


def framing(job_id: str, heartbeat: float) -> Callable[[Event, int], bytes]:
    """Makes frames of one job's events."""
    return lambda event, start: sse.frame(job_id, event, heartbeat, start)
