"""A file or folder of examples, as other rooms speak of it."""

from dataclasses import dataclass

from llmctl.types.conversation import Message, Tool


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """Which data, so exactly that two runs can say they used the same."""

    name: str
    source: str
    """Absolute path, or hub id."""
    digest: str
    """SHA-256 in hex of the rows as they are read: equal digests are equal data."""
    rows: int
    format: str = ""
    """`alpaca`, `sharegpt`, `messages`, ... or several, joined by `+`."""


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where a row was read."""

    file: str
    line: int
    """From 1: the line of a text file, the row of a table."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row to learn from, in the one form that every format becomes.

    It is either a conversation (`messages`) or plain text (`text`), never both.
    """

    origin: SourceLocation
    format: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    rejected: tuple[Message, ...] = ()
    """In preference data, the worse end of the conversation: it would stand in place of the turns
    after the last user's message."""
    masked: tuple[int, ...] = ()
    """Indexes of assistant's `messages` that are only context: no loss falls on them."""
    text: str | None = None
    """Plain text, every token of which is learnt."""
