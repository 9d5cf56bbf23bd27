"""Where the output of a new attempt meets the text that is there."""

from tramontane.wire import utf16_length


class Joint:
    """What of the output may be told, piece by piece.

    text: what readers have. expected: what the output may begin with, an echo of the prefix or the same answer.
    shortest: UTF-16 units below which a likeness is no echo; the output then follows the text.
    space: dropped once, as far as it goes, from the start of what follows. stop: words that may lie across the seam.
    """

    def __init__(self, text: str, expected: str, *, shortest: int = 0, space: str = "", stop: tuple[str, ...] = ()):
        #: Nothing may be told yet.
        self.holding = True
        #: The whole expectation has come, and was dropped.
        self.echoed = False
        #: The output is a fresh answer after all: so many units of the text stay, and what `feed` gave follows them.
        self.keep: int | None = None
        #: A stop word ends the answer at the seam: what comes later is no part of it.
        self.over = False
        self._text = text
        self._expected = expected
        self._shortest = shortest
        self._space = space
        self._ends = [word[i:] for word in stop for i in range(1, len(word)) if text.endswith(word[:i])]
        self._comparing = True
        self._at = 0
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take in the next piece of output. Returns what may be told now."""
        if self._comparing:
            piece = self._compare(piece)
        if not self._comparing and self.holding:
            piece = self._follow(piece)
        return piece

    def end(self) -> str:
        """The output is whole. Returns what was held back and belongs to the answer; nothing is held from then on."""
        piece = self._differ(self._expected[: self._at]) if self._comparing else ""
        if self.holding:
            piece = self._follow(piece)
        if self.holding and not self._space:
            piece = self._held
        self.holding = False
        return piece

    def _compare(self, piece: str) -> str:
        """What follows the expectation; nothing as long as that is not clear."""
        expected, at = self._expected, self._at
        if expected.startswith(piece, at):
            self._at += len(piece)
            piece = ""
        elif piece.startswith(expected[at:]):
            self._at = len(expected)
            piece = piece[len(expected) - at :]
        else:
            return self._differ(expected[:at] + piece)
        self.echoed = self._at == len(expected)
        self._comparing = not self.echoed
        return piece

    def _differ(self, output: str) -> str:
        self._comparing = False
        if utf16_length(output[: common(output, self._expected)]) < self._shortest:
            return output
        kept = common(output, self._text)
        self.keep = utf16_length(output[:kept])
        self.holding = False
        return output[kept:]

    def _follow(self, piece: str) -> str:
        held = self._held + piece
        dropped = common(held, self._space)
        if dropped == len(held) < len(self._space):
            self._held = held
            return ""
        self._held, self._space = held[dropped:], ""
        self.over = any(self._held.startswith(end) for end in self._ends)
        if self.over:
            self._held = ""
        elif any(end.startswith(self._held) for end in self._ends):
            return ""
        self.holding = False
        return self._held


def common(one: str, other: str) -> int:
    """How many characters two texts have in common from their start."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def cut(text: str, units: int) -> str:
    """The first `units` UTF-16 units of a text."""
    if text.isascii():
        return text[:units]
    return text.encode("utf-16-le", "surrogatepass")[: 2 * units].decode("utf-16-le", "surrogatepass")
