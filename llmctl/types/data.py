"""Datasets and their examples."""

from dataclasses import dataclass

from llmctl.types.conversation import Message, Tool


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """Identity of a dataset: two runs with the same digest used the same data."""

    name: str
    source: str
    """Absolute path or hub id."""
    digest: str
    """SHA-256 in hex of the rows as they are read."""
    rows: int
    format: str = ""
    """`alpaca`, `sharegpt`, `messages`, ... or several, joined by `+`."""


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """File and line of a row."""

    file: str
    line: int
    """From 1: line of a text file, or row of a table."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training example, in the common form of all formats.

    It is either a conversation (`messages`) or plain text (`text`), never both.
    """

    origin: SourceLocation
    format: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    rejected: tuple[Message, ...] = ()
    """In preference data, the rejected reply: the turns after the last user message."""
    masked: tuple[int, ...] = ()
    """Indices of assistant messages without loss."""
    text: str | None = None
    """Plain text, with loss on every token."""
