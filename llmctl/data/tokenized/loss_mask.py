"""Which tokens of an example the loss falls on."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from llmctl.data.tokenized.assistant_spans import (
    AssistantSpanFinder,
    RenderedSequence,
    TurnSelection,
)
from llmctl.engine.chat.control_tokens import CharSpan
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import LlmctlError
from llmctl.types import Example, Message, SourceLocation

__all__ = ["MaskedSequence", "TurnSelection", "mask_example", "mask_examples", "reply_end"]

_BATCH = 256
"""Rows that are tokenised in one call."""


@dataclass(frozen=True, slots=True)
class MaskedSequence:
    """One token sequence to learn from. The lists are of equal length, one entry per token."""

    text: str
    ids: list[int]
    offsets: list[CharSpan]
    """Of each token, the half-open span of characters in `text`; see `TokenizedText`."""
    loss_mask: list[bool]
    """True where the loss falls: on this token as a target."""
    part: str = ""
    """Which part of its row this is, where a row makes several sequences: `chosen`, `rejected`,
    or which replies (`reply 2 of 3`)."""
    note: str | None = None
    """What a person should know, in a sentence."""


def mask_example(
    template: ChatTemplate,
    example: Example,
    *,
    turns: TurnSelection = "all",
    template_kwargs: Mapping[str, object] | None = None,
) -> tuple[MaskedSequence, ...]:
    """Render and tokenise a row as the server would, and say which tokens are learnt.

    Of a conversation: everything the assistant would have to write itself after the prompt that
    the server would send, end-of-turn token included, the newline after it not. Usually that is
    one sequence. A template that writes earlier turns differently once later ones follow (Qwen3
    drops their `<think>` blocks) gives several, each with the turns that it writes as they would
    be served. `{% generation %}` blocks, where the template has them, are taken at their word.

    A preference pair gives two, `chosen` and `rejected`, of which only what comes after the last
    user's message is learnt. Plain text is learnt whole, with the end-of-text token. A row without
    any turn to learn gives none.

    Raises:
        TemplateError: there is no template, or it refuses this conversation.
        RequestError: the arguments of a tool call are no JSON object.
    """
    drafts = _drafts(template, example, turns, template_kwargs or {})
    return tuple(_finish(template, drafts))


def mask_examples(
    template: ChatTemplate,
    examples: Iterable[Example],
    *,
    turns: TurnSelection = "all",
    template_kwargs: Mapping[str, object] | None = None,
) -> Iterator[tuple[Example, tuple[MaskedSequence, ...] | LlmctlError]]:
    """Do many as `mask_example` does one, in order, faster; of a refused row comes the error."""
    rows = iter(examples)
    while batch := list(islice(rows, _BATCH)):
        drafts: list[list[RenderedSequence] | LlmctlError] = []
        for example in batch:
            try:
                drafts.append(_drafts(template, example, turns, template_kwargs or {}))
            except LlmctlError as error:
                drafts.append(error)
        good = [draft for row in drafts if isinstance(row, list) for draft in row]
        masked = iter(_finish(template, good))
        for example, row in zip(batch, drafts, strict=True):
            yield example, row if isinstance(row, LlmctlError) else tuple(islice(masked, len(row)))


def reply_end(template: ChatTemplate) -> int | None:
    """Return the control token that the template ends a reply with.

    `None` where there is no template or it ends them with plain text: what is trained on such a
    template never learns to stop.
    """
    if not template:
        return None
    # The first of two replies: some templates close a whole conversation with another token.
    turns = (Message("user", "Ask"), Message("assistant", "Answer")) * 2
    masked = mask_example(template, Example(SourceLocation("", 0), "messages", turns))[0]
    first = masked.loss_mask.index(True)
    last = first + sum(1 for _ in takewhile(bool, masked.loss_mask[first:])) - 1
    first_char, last_char = masked.offsets[last]
    controls = template.escaper.control_token_spans(masked.text)
    ends_with_control = any(a < last_char and first_char < b for a, b in controls)
    return masked.ids[last] if ends_with_control else None


def _drafts(
    template: ChatTemplate, example: Example, turns: TurnSelection, kwargs: Mapping[str, object]
) -> list[RenderedSequence]:
    if example.text is not None:
        return [RenderedSequence(example.text, (), document=True)]
    if example.rejected:
        asked = max((i for i, m in enumerate(example.messages) if m.role == "user"), default=-1)
        worse = example.messages[: asked + 1] + example.rejected
        sides = (("chosen", example), ("rejected", replace(example, messages=worse, masked=())))
        return [
            replace(draft, part=side)
            for side, row in sides
            # The last sequence holds the end of the conversation, where the two sides differ.
            for draft in AssistantSpanFinder(template, row, kwargs).drafts(asked + 1)[-1:]
        ]
    return AssistantSpanFinder(template, example, kwargs).drafts(0, turns)


def _finish(template: ChatTemplate, drafts: Sequence[RenderedSequence]) -> list[MaskedSequence]:
    tokens = template.tokens
    documents = iter(tokens.encode_documents([d.written for d in drafts if d.document]))
    conversations = iter(
        tokens.encode(
            (
                d.written,
                [edge for a, b in d.replies for edge in ((a,) if tokens.has_offsets else (a, b))],
            )
            for d in drafts
            if not d.document
        )
    )
    finished = []
    for draft in drafts:
        made = next(documents if draft.document else conversations)
        learn = [draft.document] * len(made.ids)
        for begin, end in draft.replies:
            first = bisect_right(made.offsets, begin, key=lambda span: span[1])
            last = bisect_left(made.offsets, end, key=lambda span: span[0])
            learn[first:last] = [True] * (last - first)
        finished.append(
            MaskedSequence(made.text, made.ids, made.offsets, learn, draft.part, draft.note)
        )
    return finished
