"""Token counts of rows, and the rule that limits them."""

from typing import Protocol

from llmctl.data.cleaning.rules.rule import Finding, RowView
from llmctl.data.cleaning.settings import Length
from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.errors import TemplateError
from llmctl.types import Example


class TokenCounter(Protocol):
    """Counts tokens as training does: by the tokenizer of the model and its chat template."""

    def row(self, example: Example) -> int:
        """Count the tokens of a whole row; of a preference pair, those of the chosen side.

        Raises:
            TemplateError: the chat template refuses this conversation.
        """

    def text(self, text: str) -> int:
        """Count the tokens of a text alone."""


class TemplateTokenCounter:
    """Counts tokens by the chat template and the tokenizer of one model."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def row(self, example: Example) -> int:
        if example.text is not None:
            return self.text(example.text)
        options = RenderOptions(tools=example.tools, add_generation_prompt=False)
        return len(self._template.render(example.messages, options).ids)

    def text(self, text: str) -> int:
        return len(self._template.tokens.encode([(text, ())])[0].ids)


_MARKUP = 64
"""Upper bound of the tokens that a template adds per turn, its default system prompt included."""
_LONGEST_TOKEN = 256
"""Bytes; an upper bound for the tokens of all vocabularies."""


class LengthRule:
    """Limits the tokens of a row and of its last answer."""

    def __init__(self, settings: Length, counter: TokenCounter) -> None:
        self._row = settings.min_tokens, settings.max_tokens
        self._answer = settings.min_answer_tokens, settings.max_answer_tokens
        self._counter = counter

    def check(self, row: RowView) -> Finding | None:
        example = row.example
        answer = example.text if row.last_answer is None else row.last_answer.content
        try:
            if not _surely_within(self._row, _byte_bound(example)):
                found = _outside(self._row, self._counter.row(example), "the row")
                if found is not None:
                    return found
        except TemplateError as error:
            return Finding(str(error))
        # A tool call is an answer too, but the limits are meant for texts.
        if not answer or _surely_within(self._answer, len(answer.encode())):
            return None
        return _outside(self._answer, self._counter.text(answer), "the answer")


TokenBounds = tuple[int | None, int | None]


def _surely_within(bounds: TokenBounds, size: int | None) -> bool:
    """Whether the size in bytes is enough to know that the tokens are within the bounds.

    A token has at least 1 byte and at most `_LONGEST_TOKEN`.
    """
    low, high = bounds
    if size is None:
        return low is None and high is None
    return (low is None or low * _LONGEST_TOKEN < size) and (high is None or size <= high)


def _byte_bound(example: Example) -> int | None:
    """Return an upper bound in bytes of the tokens of a row; `None` with tools."""
    if example.text is not None:
        return len(example.text.encode()) + 1
    if example.tools or any(message.tool_calls for message in example.messages):
        return None
    texts = [(m.content, m.reasoning or "") for m in example.messages]
    return sum(len((text + reasoning).encode()) + _MARKUP for text, reasoning in texts)


def _outside(bounds: TokenBounds, tokens: int, what: str) -> Finding | None:
    low, high = bounds
    if low is not None and tokens < low:
        return Finding(f"{what} has {tokens} tokens, fewer than {low}", (f"{what} too short",))
    if high is not None and tokens > high:
        return Finding(f"{what} has {tokens} tokens, more than {high}", (f"{what} too long",))
    return None
