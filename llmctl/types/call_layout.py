"""How a model writes tool calls, for a grammar of them."""

from dataclasses import dataclass

NAME, ARGUMENTS, CALL_ID, INDEX = "\0", "\1", "\2", "\3"
"""Placeholders in the texts of a `CallLayout`; INDEX counts calls from its number in `first`."""


@dataclass(frozen=True, slots=True)
class ParameterLayout:
    """How a model writes each argument of a call by itself."""

    key: str
    """Before the name of a parameter."""
    before_string: str
    """Between the name and a value that is written as text."""
    before_json: str
    """Between the name and a value that is written as JSON."""
    end: str
    """After a value."""
    json_end: str | None = None
    """After a value that is written as JSON, if that is something else."""
    separator: str = ""
    """Between arguments."""
    string_pattern: str = ""
    """Regular expression of the text of a string; empty for any text without `end`."""


@dataclass(frozen=True, slots=True)
class CallLayout:
    """How a model writes calls."""

    first: str
    """The first call, up to its arguments."""
    further: str
    """From the arguments of a call to those of the next; empty if there can be one call only."""
    end: str
    """What comes after the arguments of the last call."""
    parameters: ParameterLayout | None = None
    """`None` for arguments that are a JSON object."""
    opening: str = ""
    """The mark that `first` begins with; empty for calls that no mark announces."""
    first_index: int = 0
    """Number of the first call, where `further` has INDEX."""
