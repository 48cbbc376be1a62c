"""Stop strings in a stream of text."""

from collections.abc import Sequence


class StopStringScanner:
    """Cuts a text stream at the first stop string, and holds back text that may begin one.

    The text comes in pieces of any size. What `feed` and `flush` return, joined, never contains
    any part of the stop string that ended it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Return the text that is now safe to show."""
        if self.stopped or not piece:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        ends = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            # The stop string that completes first wins, as if the characters had come one by one;
            # of two that complete together, the longer one.
            return text[: min(ends)[1]]
        keep = partial_match_length(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the text held back, once the stream has ended."""
        held, self._held = self._held, ""
        return held


def partial_match_length(text: str, strings: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that is the beginning of one of `strings`."""
    longest = max(map(len, strings), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        end = text[-length:]
        if any(s.startswith(end) for s in strings):
            return length
    return 0
