"""Formats of tool calls and of reasoning by name, and how a template shows which one it is."""

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TypeVar

from llmctl.engine.chat.formats.families import TOOL_CALL_FORMATS
from llmctl.engine.chat.formats.format_types import (
    ReasoningFormat,
    TemplateTexts,
    ToolCallFormat,
)
from llmctl.engine.chat.formats.reasoning_families import REASONING_FORMATS
from llmctl.errors import ConfigError

ENTRY_POINTS = "llmctl.tool_call_formats"
"""Group of entry points that name further `ToolCallFormat`s; they are tried first."""


T = TypeVar("T", bound=ToolCallFormat | ReasoningFormat)


def tool_call_formats() -> tuple[ToolCallFormat, ...]:
    """Return all formats of calls, those of plug-ins first.

    Raises:
        ConfigError: a plug-in cannot be loaded, or does not name a format.
    """
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
