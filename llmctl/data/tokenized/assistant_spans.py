"""The spans of the assistant's replies in a conversation rendered by its chat template.

The prompt that the server would send is context, and all that the assistant generates after it is
in the loss, including the end-of-turn token. Each reply is therefore compared with the prompt that
the same template renders for it. This works for every template, without a list of known ones.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmctl.engine.chat.control_tokens import CharSpan
from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.errors import LlmctlError
from llmctl.types import Example, Message

TurnSelection = Literal["all", "last"]
"""The assistant's turns in the loss."""

_MATCHED_CHARACTERS = 16
"""Characters at the end of a prompt that identify the start of its reply."""


@dataclass(frozen=True, slots=True)
class RenderedSequence:
    """A sequence before it is tokenised."""

    text: str
    replies: tuple[CharSpan, ...]
    part: str = ""
    note: str | None = None
    is_document: bool = False
    """Plain text, which is in the loss as a whole; `replies` is empty."""


class AssistantSpanFinder:
    """Finds the replies of one conversation by rendering it with and without them."""

    def __init__(
        self, template: ChatTemplate, example: Example, kwargs: Mapping[str, object]
    ) -> None:
        self._template = template
        self._messages = example.messages
        self._tools = example.tools
        self._masked = example.masked
        self._options = RenderOptions(tools=example.tools, template_kwargs=kwargs)
        self._replies = [i for i, m in enumerate(example.messages) if m.role == "assistant"]
        self._rendered: dict[int, str] = {}

    def sequences(self, first: int, turns: TurnSelection = "all") -> list[RenderedSequence]:
        """Return the sequences that together have the replies from message `first` on."""
        trained = [i for i in self._replies if i >= first and i not in self._masked]
        if turns == "last":
            trained = trained[-1:]
        marked = self._by_generation_blocks(trained) if trained else None
        return self._by_prompts(trained) if marked is None else [replace(marked, part="")]

    def _by_generation_blocks(self, trained: Sequence[int]) -> RenderedSequence | None:
        if not self._template.has_generation_blocks:
            return None
        messages = self._messages[: trained[-1] + 1]
        text, blocks = self._template.render_with_assistant_spans(messages, self._options)
        replies = [i for i in self._replies if i < len(messages)]
        if len(blocks) != len(replies):
            return None  # the blocks cannot be assigned to replies
        found = zip(replies, blocks, strict=True)
        spans = {i: (a, self._end_after(text, a, b)) for i, (a, b) in found if i in trained}
        return self._sequence(text, spans)

    def _by_prompts(self, trained: Sequence[int]) -> list[RenderedSequence]:
        """Find replies by the prompts before them, with as few sequences as possible."""
        prompts = {i: prompt for i in trained if (prompt := self._prompt(i)) is not None}
        sequences: list[RenderedSequence] = []
        remaining = list(prompts)
        while remaining:
            last = remaining[-1]
            whole = self._until(last)
            spans = {
                i: span
                for i in remaining
                if (span := self._reply(prompts[i], self._until(i), whole)) is not None
            }
            if last in spans:
                sequences.append(self._sequence(whole, spans))
                remaining = [i for i in remaining if i not in spans]
            else:
                sequences.append(self._without_prompt(last, prompts[last], whole))
                remaining.pop()
        if len(sequences) == 1:
            return [replace(sequences[0], part="")]
        return sequences[::-1]

    def _sequence(self, text: str, spans: Mapping[int, CharSpan], *notes: str) -> RenderedSequence:
        """Build a sequence, with notes on the parts of replies that the template omits."""
        escape = self._template.escaper.escape
        all_notes = list(notes)
        trained = []
        for i, (first, end) in spans.items():
            message, reply = self._messages[i], text[first:end]
            if message.reasoning and escape(message.reasoning.strip()) not in reply:
                all_notes.append("the template omits the reasoning of replies")
            if all(escape(call.name) in reply for call in message.tool_calls):
                trained.append((first, end))
            else:  # in the loss, it would train the model to reply with nothing
                all_notes.append(
                    "the template omits tool calls: replies with calls are excluded from the loss"
                )
        if self._tools and not any(escape(tool.name) in text for tool in self._tools):
            all_notes.append("the template omits the tools")
        note = "; ".join(dict.fromkeys(all_notes)) or None
        return RenderedSequence(text, tuple(trained), self._part(list(spans)), note)

    def _prompt(self, reply: int) -> str | None:
        """Return the prompt that the server would send for this reply, `None` if there is none."""
        if reply == 0:
            return None  # a greeting without a prompt is context
        try:
            return self._template.render_text(self._messages[:reply], self._options)
        except LlmctlError:
            self._until(reply)  # raises if the template refuses the whole conversation
            return None

    def _until(self, reply: int) -> str:
        """Return the rendered conversation that ends with this reply."""
        if reply not in self._rendered:
            messages = self._messages[: reply + 1]
            self._rendered[reply] = self._render(messages)
        return self._rendered[reply]

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render_text(
            messages, replace(self._options, add_generation_prompt=False)
        )

    def _reply(self, prompt: str, alone: str, whole: str) -> CharSpan | None:
        """Return the span in `whole` of a reply that is rendered as it would be served.

        Args:
            prompt: the prompt that the server sends for the reply.
            alone: the conversation that ends with the reply.
            whole: the conversation, which may continue after the reply.

        Returns:
            `None` if `whole` has the reply in another form, or after another prompt.
        """
        if not (whole.startswith(prompt) and alone.startswith(prompt)):
            return None
        first = len(prompt)
        end = self._end(alone, first, len(alone))
        if whole.startswith(alone[:end]):
            return first, end
        # Some templates close the end of a conversation (Phi-3 adds an EOS): what `whole` lacks
        # must be control tokens only.
        end = self._end(alone, first, _common_prefix(alone, whole), strict=True)
        rest = alone[end:]
        for a, b in reversed(list(self._template.escaper.control_token_spans(rest))):
            rest = rest[:a] + rest[b:]
        return (first, end) if end > first and not rest.strip() else None

    def _without_prompt(self, reply: int, prompt: str, whole: str) -> RenderedSequence:
        """Return the sequence of a reply that the template does not render after its prompt."""
        begin = self._begin(reply, whole)
        # The prompt may differ only further up (Mistral's template moves the system message to the
        # last question): then the reply is put after the prompt as it is served.
        header = max((a for a, _ in self._controls(prompt)), default=0)
        opening = prompt[max(header, len(prompt) - _MATCHED_CHARACTERS) :]
        for first in range(begin, len(whole[:begin].rstrip()) - 1, -1):
            if whole[:first].endswith(opening):
                end = len(prompt) - first + self._end(whole, first, len(whole))
                return self._sequence(prompt + whole[first:], {reply: (len(prompt), end)})
        note = (
            f"the generation prompt ends with {prompt[_common_prefix(prompt, whole[:begin]) :]!r}, "
            "which the template omits before this reply"
        )
        return self._sequence(whole, {reply: (begin, self._end(whole, begin, len(whole)))}, note)

    def _begin(self, reply: int, whole: str) -> int:
        """Return where the text of a reply begins, by rendering other texts in its place."""
        others = (
            self._render([*self._messages[:reply], Message("assistant", text)])
            for text in ("A", "B")
        )
        return min(_common_prefix(whole, other) for other in others)

    def _controls(self, text: str) -> list[CharSpan]:
        return list(self._template.escaper.control_token_spans(text))

    def _end(self, text: str, first: int, last: int, *, strict: bool = False) -> int:
        """Return the end of the reply in `text[first:last]`: after its last control token.

        If text follows that token, or the template has none, the end is before the trailing white
        space. With `strict`, it is after the last control token in any case, or `first`.
        """
        ends = [first + b for _, b in self._controls(text[first:last])]
        if strict:
            return max(ends, default=first)
        if ends and not text[ends[-1] : last].strip():
            return ends[-1]
        return first + len(text[first:last].rstrip())

    def _end_after(self, text: str, first: int, last: int) -> int:
        """Return the end of a block's reply; the end-of-turn token may follow the block."""
        end = self._end(text, first, last)
        if any(first + b == end for _, b in self._controls(text[first:last])):
            return end
        return next((last + b for a, b in self._controls(text[last:]) if a == 0), end)

    def _part(self, replies: Sequence[int]) -> str:
        numbers = ", ".join(str(self._replies.index(i) + 1) for i in replies)
        return f"{'reply' if len(replies) == 1 else 'replies'} {numbers} of {len(self._replies)}"


def _common_prefix(a: str, b: str) -> int:
    """Return the length of the common prefix of two texts."""
    return bisect_left(range(min(len(a), len(b))), True, key=lambda n: a[: n + 1] != b[: n + 1])
