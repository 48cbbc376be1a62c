"""Where a conversation, written out by its template, has the assistant's replies.

The rule: what the server would send as the prompt is context, and all that the assistant would then
have to write itself is learnt, its end-of-turn token included. So each reply is compared with the
prompt that the same template makes for it; no template is known by name.
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
"""Which of the assistant's turns are learnt."""

_OPENING = 16
"""Characters at the end of a prompt by which the beginning of a reply is recognised."""


@dataclass(frozen=True, slots=True)
class RenderedSequence:
    """A sequence before it is tokenised."""

    written: str
    replies: tuple[CharSpan, ...]
    part: str = ""
    note: str | None = None
    document: bool = False
    """Plain text, of which `replies` says nothing."""


class AssistantSpanFinder:
    """One list of messages, written out as often as it takes to know what is a reply in it."""

    def __init__(
        self, template: ChatTemplate, example: Example, kwargs: Mapping[str, object]
    ) -> None:
        self._template = template
        self._messages = example.messages
        self._tools = example.tools
        self._masked = example.masked
        self._options = RenderOptions(tools=example.tools, template_kwargs=kwargs)
        self._all = [i for i, m in enumerate(example.messages) if m.role == "assistant"]
        self._finished: dict[int, str] = {}

    def drafts(self, first: int, turns: TurnSelection = "all") -> list[RenderedSequence]:
        """Return the sequences in which the replies from message `first` on are learnt."""
        learnt = [i for i in self._all if i >= first and i not in self._masked]
        if turns == "last":
            learnt = learnt[-1:]
        marked = self._marked_by_template(learnt) if learnt else None
        return self._compared(learnt) if marked is None else [replace(marked, part="")]

    def _marked_by_template(self, learnt: Sequence[int]) -> RenderedSequence | None:
        if not self._template.has_generation_blocks:
            return None
        shown = self._messages[: learnt[-1] + 1]
        written, blocks = self._template.render_with_assistant_spans(shown, self._options)
        replies = [i for i in self._all if i < len(shown)]
        if len(blocks) != len(replies):
            return None  # whose block is whose cannot be told
        found = zip(replies, blocks, strict=True)
        spans = {i: (a, self._end_after(written, a, b)) for i, (a, b) in found if i in learnt}
        return self._draft(written, spans)

    def _compared(self, learnt: Sequence[int]) -> list[RenderedSequence]:
        prompts = {i: prompt for i in learnt if (prompt := self._prompt(i)) is not None}
        drafts: list[RenderedSequence] = []
        waiting = list(prompts)
        while waiting:
            last = waiting[-1]
            whole = self._until(last)
            spans = {
                i: span
                for i in waiting
                if (span := self._reply(prompts[i], self._until(i), whole)) is not None
            }
            if last in spans:
                drafts.append(self._draft(whole, spans))
                waiting = [i for i in waiting if i not in spans]
            else:
                drafts.append(self._unlike_its_prompt(last, prompts[last], whole))
                waiting.pop()
        if len(drafts) == 1:
            return [replace(drafts[0], part="")]
        return drafts[::-1]

    def _draft(self, written: str, spans: Mapping[int, CharSpan], *notes: str) -> RenderedSequence:
        """Make a sequence of replies, and say what of them the template does not write."""
        hide = self._template.escaper.escape
        said = list(notes)
        shown = []
        for i, (first, end) in spans.items():
            message, own = self._messages[i], written[first:end]
            if message.reasoning and hide(message.reasoning.strip()) not in own:
                said.append("the template leaves out the reasoning of replies")
            if all(hide(call.name) in own for call in message.tool_calls):
                shown.append((first, end))
            else:  # learnt as it is written, it would teach to say nothing
                said.append(
                    "the template leaves out tool calls: replies that make them are context"
                )
        if self._tools and not any(hide(tool.name) in written for tool in self._tools):
            said.append("the template leaves out the tools")
        note = "; ".join(dict.fromkeys(said)) or None
        return RenderedSequence(written, tuple(shown), self._part(list(spans)), note)

    def _prompt(self, reply: int) -> str | None:
        """Return what the server would send to get this reply, `None` where it never would."""
        if reply == 0:
            return None  # nobody asks for a reply to nothing: a greeting is context
        try:
            return self._template.render_text(self._messages[:reply], self._options)
        except LlmctlError:
            self._until(reply)  # refuses the row if the template refuses all of it
            return None

    def _until(self, reply: int) -> str:
        """Return the conversation that ends with this reply."""
        if reply not in self._finished:
            messages = self._messages[: reply + 1]
            self._finished[reply] = self._finish_with(messages)
        return self._finished[reply]

    def _finish_with(self, messages: Sequence[Message]) -> str:
        return self._template.render_text(
            messages, replace(self._options, add_generation_prompt=False)
        )

    def _reply(self, prompt: str, alone: str, whole: str) -> CharSpan | None:
        """Return where `whole` has a reply just as it would be served, `None` if it has not.

        Args:
            prompt: what the server sends to get the reply.
            alone: the conversation that ends with it.
            whole: one that may go on.
        """
        if not (whole.startswith(prompt) and alone.startswith(prompt)):
            return None
        first = len(prompt)
        end = self._end(alone, first, len(alone))
        if whole.startswith(alone[:end]):
            return first, end
        # Some templates close whatever comes last (Phi-3 adds an EOS): where the ways part, all
        # that is missing must be control tokens.
        end = self._end(alone, first, _shared(alone, whole), strict=True)
        rest = alone[end:]
        for a, b in reversed(list(self._template.escaper.control_token_spans(rest))):
            rest = rest[:a] + rest[b:]
        return (first, end) if end > first and not rest.strip() else None

    def _unlike_its_prompt(self, reply: int, prompt: str, whole: str) -> RenderedSequence:
        """Take a reply that the template does not write after the prompt it makes for it."""
        begin = self._begin(reply, whole)
        # The prompt may differ only further up (Mistral's shows the system's words while the
        # question is the last message): then the reply follows the prompt as it is served.
        header = max((a for a, _ in self._controls(prompt)), default=0)
        opening = prompt[max(header, len(prompt) - _OPENING) :]
        for first in range(begin, len(whole[:begin].rstrip()) - 1, -1):
            if whole[:first].endswith(opening):
                end = len(prompt) - first + self._end(whole, first, len(whole))
                return self._draft(prompt + whole[first:], {reply: (len(prompt), end)})
        note = (
            f"the server opens a reply with {prompt[_shared(prompt, whole[:begin]) :]!r}, "
            "which the template leaves out of this one"
        )
        return self._draft(whole, {reply: (begin, self._end(whole, begin, len(whole)))}, note)

    def _begin(self, reply: int, whole: str) -> int:
        """Return where a reply's own words begin, by writing others in their place."""
        others = (
            self._finish_with([*self._messages[:reply], Message("assistant", words)])
            for words in ("A", "B")
        )
        return min(_shared(whole, other) for other in others)

    def _controls(self, text: str) -> list[CharSpan]:
        return list(self._template.escaper.control_token_spans(text))

    def _end(self, text: str, first: int, last: int, *, strict: bool = False) -> int:
        """Return where the reply in `text[first:last]` ends: after the control token that ends it.

        Where the template writes none, before the white space at the end; with `strict` after the
        last control token there is, whatever follows, or at `first`.
        """
        ends = [first + b for _, b in self._controls(text[first:last])]
        if strict:
            return max(ends, default=first)
        if ends and not text[ends[-1] : last].strip():
            return ends[-1]
        return first + len(text[first:last].rstrip())

    def _end_after(self, text: str, first: int, last: int) -> int:
        """Return where a block's reply ends: the end-of-turn token may come after the block."""
        end = self._end(text, first, last)
        if any(first + b == end for _, b in self._controls(text[first:last])):
            return end
        return next((last + b for a, b in self._controls(text[last:]) if a == 0), end)

    def _part(self, replies: Sequence[int]) -> str:
        numbers = ", ".join(str(self._all.index(i) + 1) for i in replies)
        return f"{'reply' if len(replies) == 1 else 'replies'} {numbers} of {len(self._all)}"


def _shared(a: str, b: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    return bisect_left(range(min(len(a), len(b))), True, key=lambda n: a[: n + 1] != b[: n + 1])
