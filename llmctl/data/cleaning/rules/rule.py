"""The interface of rules on single rows: the row as input, a finding as result."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from llmctl.types import Example, Message


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one rule on one row."""

    detail: str
    """A short message for the user."""
    kinds: tuple[str, ...] = ()
    """Kinds of the findings, one entry for each occurrence; the report counts them."""


class RowRule(Protocol):
    """A rule on single rows."""

    def check(self, row: "RowView") -> Finding | None:
        """Return the finding; None without one."""


class RowView:
    """An example with the texts that rules check."""

    def __init__(self, example: Example) -> None:
        self.example = example

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The training text: every answer of the assistant, or the plain text."""
        example = self.example
        if example.text is not None:
            return (example.text,)
        return tuple(m.content for m in example.messages if m.role == "assistant")

    @cached_property
    def last_answer(self) -> Message | None:
        last = self.example.messages[-1] if self.example.messages else None
        return last if last is not None and last.role == "assistant" else None

    @cached_property
    def last_question(self) -> str:
        """The last message of the user; empty if there is none."""
        questions = (m.content for m in reversed(self.example.messages) if m.role == "user")
        return next(questions, "")

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All texts of the row."""
        return tuple(texts_of(self.example))


def texts_of(example: Example) -> list[str]:
    """Return every text of a row, including the arguments of tool calls."""
    if example.text is not None:
        return [example.text]
    found = []
    for message in (*example.messages, *example.rejected):
        found.append(message.content)
        if message.reasoning is not None:
            found.append(message.reasoning)
        found += [call.arguments for call in message.tool_calls]
    return found
