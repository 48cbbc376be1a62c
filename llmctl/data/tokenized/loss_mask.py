"""Tokenised examples with their loss masks."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from llmctl.data.formats.turn_order import response_start
from llmctl.data.tokenized.assistant_spans import (
    AssistantSpanFinder,
    RenderedSequence,
    TurnSelection,
)
from llmctl.engine.chat.control_tokens import CharSpan
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import LlmctlError
from llmctl.types import Example

__all__ = ["MaskedSequence", "TurnSelection", "mask_example", "mask_examples"]

_BATCH = 256
"""Rows tokenised in one call."""


@dataclass(frozen=True, slots=True)
class MaskedSequence:
    """One token sequence to train on. The lists have one entry per token."""

    text: str
    ids: list[int]
    offsets: list[CharSpan]
    """The half-open span of each token's characters in `text`; see `TokenizedText`."""
    loss_mask: list[bool]
    """True where the token is a target of the loss."""
    part: str = ""
    """The part of its row, if a row has several sequences: `chosen`, `rejected`, or the replies
    in the loss (`reply 2 of 3`)."""
    note: str | None = None
    """A remark for the user, as one sentence."""


def mask_example(
    template: ChatTemplate,
    example: Example,
    *,
    turns: TurnSelection = "all",
    template_kwargs: Mapping[str, object] | None = None,
) -> tuple[MaskedSequence, ...]:
    """Render and tokenise a row as the server would, with the mask of the tokens in the loss.

    In a conversation, the loss is on what the assistant generates after the prompt that the server
    would send: up to and including the end-of-turn token, without the newline after it. Usually
    this is one sequence. A template that renders earlier turns differently once later ones follow
    (Qwen3 drops their `<think>` blocks) gives several, each with the turns that it renders as they
    would be served. If the template has `{% generation %}` blocks, these decide.

    A preference pair gives two sequences, `chosen` and `rejected`, with the loss on what follows
    the last user's message. Plain text is in the loss as a whole, with the end-of-text token. A row
    without an assistant's turn in the loss gives no sequence.

    Args:
        turns: the assistant's turns in the loss.
        template_kwargs: further variables of the chat template.

    Raises:
        TemplateError: there is no template, or it refuses this conversation.
        RequestError: the arguments of a tool call are not a JSON object.
    """
    rendered = _render(template, example, turns, template_kwargs or {})
    return tuple(_tokenize(template, rendered))


def mask_examples(
    template: ChatTemplate,
    examples: Iterable[Example],
    *,
    turns: TurnSelection = "all",
    template_kwargs: Mapping[str, object] | None = None,
) -> Iterator[tuple[Example, tuple[MaskedSequence, ...] | LlmctlError]]:
    """Do the same as `mask_example` for many rows, in order, in batches.

    Yields:
        each row with its sequences, or with the error that `mask_example` would raise.
    """
    rows = iter(examples)
    while batch := list(islice(rows, _BATCH)):
        rendered: list[list[RenderedSequence] | LlmctlError] = []
        for example in batch:
            try:
                rendered.append(_render(template, example, turns, template_kwargs or {}))
            except LlmctlError as error:
                rendered.append(error)
        valid = [sequence for row in rendered if isinstance(row, list) for sequence in row]
        masked = iter(_tokenize(template, valid))
        for example, row in zip(batch, rendered, strict=True):
            yield example, row if isinstance(row, LlmctlError) else tuple(islice(masked, len(row)))


def _render(
    template: ChatTemplate, example: Example, turns: TurnSelection, kwargs: Mapping[str, object]
) -> list[RenderedSequence]:
    if example.text is not None:
        return [RenderedSequence(example.text, (), is_document=True)]
    if example.rejected:
        start = response_start(example.messages)
        rejected = example.messages[:start] + example.rejected
        sides = (("chosen", example), ("rejected", replace(example, messages=rejected, masked=())))
        return [
            replace(sequence, part=side)
            for side, row in sides
            # The last sequence has the end of the conversation, where the two sides differ.
            for sequence in AssistantSpanFinder(template, row, kwargs).sequences(start)[-1:]
        ]
    return AssistantSpanFinder(template, example, kwargs).sequences(0, turns)


def _tokenize(template: ChatTemplate, rendered: Sequence[RenderedSequence]) -> list[MaskedSequence]:
    tokenizer = template.tokens
    # Without offsets, the text must be split at both ends of a reply.
    edges = 1 if tokenizer.has_offsets else 2
    documents = iter(tokenizer.encode_documents([s.text for s in rendered if s.is_document]))
    conversations = iter(
        tokenizer.encode(
            (s.text, [edge for span in s.replies for edge in span[:edges]])
            for s in rendered
            if not s.is_document
        )
    )
    masked = []
    for sequence in rendered:
        tokens = next(documents if sequence.is_document else conversations)
        loss_mask = [sequence.is_document] * len(tokens.ids)
        for begin, end in sequence.replies:
            first = bisect_right(tokens.offsets, begin, key=lambda span: span[1])
            last = bisect_left(tokens.offsets, end, key=lambda span: span[0])
            loss_mask[first:last] = [True] * (last - first)
        masked.append(
            MaskedSequence(
                tokens.text, tokens.ids, tokens.offsets, loss_mask, sequence.part, sequence.note
            )
        )
    return masked
