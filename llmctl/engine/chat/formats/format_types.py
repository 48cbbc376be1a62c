"""What a format of tool calls or of reasoning is."""

from collections.abc import Collection
from dataclasses import dataclass

from llmctl.engine.chat.parsing.call_reader import CallReader
from llmctl.engine.chat.parsing.channels import Channels


@dataclass(frozen=True, slots=True)
class TemplateTexts:
    """What a model says about its format."""

    call: str = ""
    """A turn with a call, as the template prints it; empty if it prints none."""
    source: str = ""
    """The template and what it prints for reasoning."""
    tokens: Collection[str] = ()
    """Tokens that were added to the vocabulary."""


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """One format of tool calls."""

    name: str
    families: str
    reader: CallReader | Channels
    example: str
    """A call of `add` with the arguments a=1 and b="x"."""
    source: str
    """Who writes it: a template or a document of the maker."""
    signatures: tuple[tuple[str, ...], ...] = ()
    """Alternatives, each of texts that all occur in a turn with a call or in the template."""
    start: str = ""
    """What a turn with a call begins with, for formats without marks."""
    tokens: tuple[str, ...] = ()
    """Tokens of the vocabulary by which a template that prints no calls is recognised."""
    aliases: tuple[str, ...] = ()

    def prints(self, text: str) -> bool:
        """Whether a text has the signature."""
        return any(all(part in text for part in parts) for parts in self.signatures)


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """One format of reasoning."""

    name: str
    families: str
    open: str
    close: str
    frames: tuple[str, ...] = ()
    """Marks around the answer that are not part of it."""
    channels: Channels | None = None
    """Reader of the whole response, if it consists of several messages."""
    aliases: tuple[str, ...] = ()

    def prints(self, text: str) -> bool:
        """Whether a text has the marks. Some templates print the closing one only."""
        return self.open in text or ("think>" in self.close and self.close in text)
