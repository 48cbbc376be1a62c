"""Formats of tool calls and of reasoning by name, and how a template shows which one it is."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TypeVar

from llmctl.engine.chat.parsing.call_reader import CallReader
from llmctl.engine.chat.parsing.channels import Channels
from llmctl.errors import ConfigError

ENTRY_POINTS = "llmctl.tool_call_formats"
"""Group of entry points that name further `ToolCallFormat`s; they are tried first."""


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


T = TypeVar("T", bound=ToolCallFormat | ReasoningFormat)


def tool_call_formats() -> tuple[ToolCallFormat, ...]:
    """Return all formats of calls, those of plug-ins first.

    Raises:
        ConfigError: a plug-in cannot be loaded, or does not name a format.
    """
    from llmctl.engine.chat.formats.families import TOOL_CALL_FORMATS

    found = []
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            value = entry.load()
        except Exception as error:  # a plug-in may raise anything
            raise ConfigError(
                f"the tool-call format {entry.name!r} of {entry.value!r} cannot be loaded: {error}",
                hint="update or remove the package that has it",
            ) from error
        if not isinstance(value, ToolCallFormat):
            raise ConfigError(
                f"the plug-in {entry.name!r} of {entry.value!r} is not a ToolCallFormat",
                hint="update or remove the package that has it",
            )
        found.append(value)
    return (*found, *TOOL_CALL_FORMATS)


def reasoning_formats() -> tuple[ReasoningFormat, ...]:
    """Return all formats of reasoning."""
    from llmctl.engine.chat.formats.reasoning_families import REASONING_FORMATS

    return REASONING_FORMATS


def recognise_calls(texts: TemplateTexts) -> ToolCallFormat | None:
    """Return the format in which a template prints calls or tells the model to write them."""
    formats = tool_call_formats()
    for known in formats:
        if known.prints(texts.call):
            return known
    for known in formats:
        if known.start and texts.call.lstrip().startswith(known.start):
            return known
    for known in formats:
        if known.prints(texts.source):
            return known
    for known in formats:
        if any(token in texts.tokens for token in known.tokens):
            return known
    return None


def recognise_reasoning(texts: TemplateTexts) -> ReasoningFormat | None:
    """Return the format of the reasoning that a template prints or asks for."""
    return next((known for known in reasoning_formats() if known.prints(texts.source)), None)


def named_format(name: str, formats: Sequence[T], option: str) -> T:
    """Return a format by its name or alias.

    Raises:
        ConfigError: there is none.
    """
    for known in formats:
        if name in (known.name, *known.aliases):
            return known
    names = ", ".join(sorted(known.name for known in formats))
    raise ConfigError(f"unknown {option} {name!r}", hint=f"one of: {names}, none")
