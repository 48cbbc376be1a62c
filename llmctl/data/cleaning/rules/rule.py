"""What does a rule see of a row, and what does it say?"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from llmctl.types import Example, Message


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says of one row."""

    detail: str
    """In a few words, for a person."""
    kinds: tuple[str, ...] = ()
    """What was found, one entry for each time; counted in the report."""


class RowRule(Protocol):
    """Looks at one row by itself."""

    def look(self, row: "RowView") -> Finding | None: ...


class RowView:
    """An example as rules look at it: who asks, who answers, in which words."""

    def __init__(self, example: Example) -> None:
        self.example = example

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """What is learnt: every answer of the assistant, or the plain text."""
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
        """The user's last message; empty where there is none."""
        asked = (m.content for m in reversed(self.example.messages) if m.role == "user")
        return next(asked, "")

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Everything that people and models wrote in this row."""
        return tuple(texts_of(self.example))


def texts_of(example: Example) -> list[str]:
    """Return every text of a row, the arguments of tool calls included."""
    if example.text is not None:
        return [example.text]
    found = []
    for message in (*example.messages, *example.rejected):
        found.append(message.content)
        if message.reasoning is not None:
            found.append(message.reasoning)
        found += [call.arguments for call in message.tool_calls]
    return found
