"""Which part of a reply is thought, where neither engine nor server has told them apart?"""

from dataclasses import replace

from llmctl.types import GenerationChunk

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkTagSplitter:
    """Moves `<think>…</think>` at the head of a reply from its text to its reasoning.

    Only there: a model that speaks of the mark later is taken at its word.
    """

    def __init__(self) -> None:
        self._state = "head"
        self._held = ""

    def feed(self, chunk: GenerationChunk) -> GenerationChunk:
        """Return the chunk with what is certain by now. The last one, which ends it, has it all."""
        text, reasoning = self._split(chunk.text)
        if chunk.finish_reason is not None:
            rest = self.rest()
            if self._state == "inside":
                reasoning += rest
            else:
                text += rest
        return replace(chunk, text=text, reasoning=chunk.reasoning + reasoning)

    def rest(self) -> str:
        """Return what is held back; no more can come."""
        held, self._held = self._held, ""
        return held

    def _split(self, text: str) -> tuple[str, str]:
        reasoning = ""
        if self._state == "head":
            self._held += text
            begun = self._held.lstrip()
            if begun.startswith(_OPEN):
                self._state, self._held, text = "inside", "", begun[len(_OPEN) :].lstrip()
            elif _OPEN.startswith(begun):
                return "", ""
            else:
                self._state = "text"
                return self.rest(), ""
        if self._state == "inside":
            self._held += text
            thought, closed, after = self._held.partition(_CLOSE)
            if not closed:
                keep = _begun(self._held, _CLOSE)
                end = len(self._held) - keep
                reasoning, self._held = self._held[:end], self._held[end:]
                return "", reasoning
            self._state, self._held, reasoning, text = "after", "", thought.rstrip(), after
        if self._state == "after":
            # White space between a mark and what follows belongs to the mark.
            text = text.lstrip()
            if text:
                self._state = "text"
        return text, reasoning


def _begun(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that begins `mark`."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((n for n in lengths if mark.startswith(text[-n:])), 0)
