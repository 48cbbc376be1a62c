"""Lists of calls between marks."""

from collections.abc import Callable

from llmctl.engine.chat.parsing.response_output import ResponseOutput
from llmctl.engine.chat.parsing.text_source import (
    CutOffError,
    Steps,
    TextSource,
    UnexpectedTextError,
)

ReadCall = Callable[[TextSource, ResponseOutput], Steps[None]]


def read_section(
    source: TextSource,
    output: ResponseOutput,
    *,
    call: str,
    end: str,
    read_call: ReadCall,
    inside: bool,
) -> Steps[None]:
    """Read one call after its mark, or a list after the mark of the list.

    What follows the last call and is no call, is left.

    Args:
        source: of the response.
        output: gets the calls.
        call: mark of a call.
        end: mark of the end of the list.
        read_call: reads a call after its mark.
        inside: whether the mark of a list was read, not that of a call.

    Raises:
        UnexpectedTextError: there is no call.
    """
    if inside:
        yield from source.space()
        yield from source.expect(call)
    yield from read_call(source, output)
    while inside:
        start = source.position
        yield from source.space()
        try:
            if (yield from source.expect(call, *filter(None, [end]))) != call:
                return
            yield from read_call(source, output)
        except UnexpectedTextError as error:
            if output.call_open or isinstance(error, CutOffError):
                raise
            source.rewind(start)
            return
