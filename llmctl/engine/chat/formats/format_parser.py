"""The response parser that runs a reader over the pieces of a response."""

from collections.abc import Callable, Sequence

from llmctl.engine.chat.formats.format_types import ReasoningFormat, ToolCallFormat
from llmctl.engine.chat.parsing.call_reader import CallReader
from llmctl.engine.chat.parsing.channels import Channels
from llmctl.engine.chat.parsing.response_layout import ReasoningMarks, read_response
from llmctl.engine.chat.parsing.response_output import ResponseOutput
from llmctl.engine.chat.parsing.text_source import Steps, TextSource
from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.types import Tool

Reader = Callable[[TextSource, ResponseOutput], Steps[None]]


class FormatParser:
    """A `ResponseParser` that follows a format.

    Args:
        read: reads the whole response.
        tools: that the request offers.
    """

    def __init__(self, read: Reader, tools: Sequence[Tool] = ()) -> None:
        self._source = TextSource()
        self._output = ResponseOutput(tools)
        self._steps: Steps[None] | None = read(self._source, self._output)

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`."""
        if text:
            self._source.feed(text)
            self._advance()
        return self._output.take()

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`."""
        self._source.end()
        self._advance()
        return self._output.take()

    def _advance(self) -> None:
        if self._steps is not None and next(self._steps, self) is self:
            self._steps = None


def response_reader(
    calls: ToolCallFormat | None,
    reasoning: ReasoningFormat | None,
    *,
    offered: bool,
    opened: bool,
    indent: str = "",
) -> Reader | None:
    """Return the reader of a response; `None` if all of it is answer.

    Args:
        calls: format of the model's calls.
        reasoning: format of its reasoning.
        offered: whether the request offers tools.
        opened: whether the prompt ends with the mark that opens the reasoning.
        indent: white space that the response begins with.
    """
    channels = channels_of(calls, reasoning)
    if channels is not None:
        return lambda source, output: channels.read(source, output, calls=offered)
    reader: CallReader | None = None
    if calls is not None and offered and not isinstance(calls.reader, Channels):
        reader = calls.reader
    marks = None if reasoning is None else ReasoningMarks(reasoning.open, reasoning.close)
    frames = () if reasoning is None else reasoning.frames
    if reader is None and marks is None and not indent:
        return None
    return lambda source, output: read_response(
        source,
        output,
        reasoning=marks,
        opened=opened,
        calls=reader,
        frames=frames,
        indent=indent,
    )


def reasoning_parser(reasoning: ReasoningFormat, *, opened: bool = False) -> FormatParser:
    """Return a parser that separates reasoning only."""
    read = response_reader(None, reasoning, offered=False, opened=opened)
    assert read is not None
    return FormatParser(read)


def channels_of(calls: ToolCallFormat | None, reasoning: ReasoningFormat | None) -> Channels | None:
    """Return the reader of a response in several messages, if a format has them."""
    if reasoning is not None and reasoning.channels is not None:
        return reasoning.channels
    if calls is not None and isinstance(calls.reader, Channels):
        return calls.reader
    return None


def format_marks(
    calls: ToolCallFormat | None, reasoning: ReasoningFormat | None
) -> tuple[str, ...]:
    """Return all marks of the formats."""
    marks: tuple[str, ...] = () if calls is None else calls.reader.marks
    if reasoning is not None:
        marks += (reasoning.open, reasoning.close, *reasoning.frames)
        if reasoning.channels is not None:
            marks += reasoning.channels.marks
    return marks
