"""Separation of a `<think>` block at the start of a response from the answer."""

from typing import Literal

from llmctl.engine.chat.stop_strings import partial_match_length

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkTagSplitter:
    """Separates a `<think>` block at the start of one response from the answer after it.

    A tag later in the response is part of the answer. Text that may be the beginning of a tag is
    held back until more text has come. White space between a tag and what it encloses belongs to
    the tag.

    Args:
        opened: whether the prompt ends with the opening tag.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self._state: Literal["start", "opened", "reasoning", "after", "answer"] = (
            "opened" if opened else "start"
        )
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece of a response; return answer and reasoning that are certain."""
        if self._state == "answer":
            return text, ""
        text, self._held = self._held + text, ""
        reasoning = ""
        if self._state == "start":
            stripped = text.lstrip()
            if not stripped.startswith(_OPEN):
                if _OPEN.startswith(stripped):
                    self._held = text
                    return "", ""
                self._state = "answer"
                return text, ""
            self._state, text = "opened", stripped[len(_OPEN) :]
        if self._state == "opened":
            text = text.lstrip()
            if not text:
                return "", ""
            self._state = "reasoning"
        if self._state == "reasoning":
            reasoning, closed, text = text.partition(_CLOSE)
            if not closed:
                end = len(reasoning) - partial_match_length(reasoning, [_CLOSE])
                end = len(reasoning[:end].rstrip())
                self._held = reasoning[end:]
                return "", reasoning[:end]
            self._state, reasoning = "after", reasoning.rstrip()
        # White space between the tag and the answer belongs to the tag.
        text = text.lstrip()
        if text:
            self._state = "answer"
        return text, reasoning

    def flush(self) -> tuple[str, str]:
        """Return what is held back as answer and reasoning, once no more text can come."""
        held, self._held = self._held, ""
        return ("", held) if self._state == "reasoning" else (held, "")
