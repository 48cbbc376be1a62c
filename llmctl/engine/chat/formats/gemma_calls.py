"""Gemma 4's calls: objects with unquoted keys, and strings between marks of their own."""

import re
from dataclasses import dataclass

from llmctl.engine.chat.parsing.json_text import stream_value
from llmctl.engine.chat.parsing.parameter_types import literal
from llmctl.engine.chat.parsing.response_output import ResponseOutput, dumps
from llmctl.engine.chat.parsing.text_source import Steps, TextSource, UnexpectedTextError
from llmctl.engine.chat.parsing.tool_names import check_name

_QUOTE = '<|"|>'
_KEY = re.compile(r"[^\s{}\[\]:,]+")
_MOST_NESTED = 100


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """Reader of `<|tool_call>call:NAME{key:<|"|>text<|"|>,other:3}<tool_call|>`."""

    opening: str = "<|tool_call>"
    closing: str = "<tool_call|>"
    bare: bool = False
    line_start: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        """See `CallReader.openings`."""
        return (self.opening,)

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        return (self.opening, self.closing, _QUOTE)

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        del opening  # there is one only
        yield from source.expect("call:")
        name = check_name((yield from source.until("{", keep_mark=True)).strip())
        output.begin_call(name)
        yield from self._value(source, output, 0)
        output.end_call()
        yield from source.accept(self.closing)

    def _value(self, source: TextSource, output: ResponseOutput, depth: int) -> Steps[None]:
        if depth > _MOST_NESTED:
            raise UnexpectedTextError
        yield from source.space()
        if (yield from source.accept(_QUOTE)):
            output.arguments('"')
            write = output.arguments
            if (yield from source.stream([_QUOTE], lambda text: write(dumps(text)[1:-1]))) is None:
                raise UnexpectedTextError
            yield from source.expect(_QUOTE)
            output.arguments('"')
        elif (yield from source.starts('"')):
            yield from stream_value(source, output.arguments)
        elif (yield from source.accept("{")):
            yield from self._items(source, output, depth, "{", "}")
        elif (yield from source.accept("[")):
            yield from self._items(source, output, depth, "[", "]")
        else:
            text = (yield from source.until(",", "}", "]", keep_mark=True)).strip()
            output.arguments(dumps(literal(text, text)))

    def _items(
        self, source: TextSource, output: ResponseOutput, depth: int, opening: str, closing: str
    ) -> Steps[None]:
        output.arguments(opening)
        first = True
        while True:
            yield from source.space()
            if (yield from source.accept(closing)):
                break
            if not first:
                yield from source.expect(",")
                yield from source.space()
            prefix = "" if first else ", "
            first = False
            if opening == "{":
                if (yield from source.accept(_QUOTE)):
                    key = yield from source.until(_QUOTE)
                    yield from source.space()
                    yield from source.expect(":")
                else:
                    key = (yield from source.until(":")).strip().strip('"')
                    if _KEY.fullmatch(key) is None:
                        raise UnexpectedTextError
                output.arguments(f"{prefix}{dumps(key)}: ")
            else:
                output.arguments(prefix)
            yield from self._value(source, output, depth + 1)
        output.arguments(closing)
