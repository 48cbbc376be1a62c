"""Calls in Python's syntax: `[name(key=value, ...), ...]`, or one call per line."""

from dataclasses import dataclass

from llmctl.engine.chat.parsing.parameter_types import literal
from llmctl.engine.chat.parsing.response_output import ArgumentWriter, ResponseOutput
from llmctl.engine.chat.parsing.text_source import Steps, TextSource, UnexpectedTextError
from llmctl.engine.chat.parsing.tool_names import NAME

_MOST_CHARACTERS = 1_000_000
_NOT_A_LITERAL = object()


@dataclass(frozen=True, slots=True)
class PythonicCalls:
    """Reader of calls in Python's syntax. Values are Python or JSON literals."""

    openings: tuple[str, ...] = ()
    closings: tuple[str, ...] = ()
    bare: bool = False
    """Such a response begins with a bracket, and every name is one of the tools'."""
    line_start: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        return self.openings + self.closings

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        yield from source.space()
        in_list = (yield from source.accept("[")) is not None
        if not in_list and not opening:
            raise UnexpectedTextError
        yield from self._call(source, output, known_only=not opening)
        while True:
            start = source.position
            yield from source.space()
            yield from source.accept(",")
            yield from source.space()
            if (yield from source.starts("]", *self.closings)) or not (yield from source.peek()):
                break
            try:
                yield from self._call(source, output, known_only=not opening)
            except UnexpectedTextError:
                if output.call_open:
                    raise
                source.rewind(start)
                return
        if in_list:
            yield from source.accept("]")
        start = source.position
        yield from source.space()
        if not (self.closings and (yield from source.accept(*self.closings))):
            source.rewind(start)

    def _call(self, source: TextSource, output: ResponseOutput, *, known_only: bool) -> Steps[None]:
        yield from source.space()
        name = (yield from source.until("(")).strip()
        if NAME.fullmatch(name) is None or (known_only and name not in output.tools):
            raise UnexpectedTextError
        writer = ArgumentWriter(output)
        yield from source.space()
        if (yield from source.accept(")")):
            output.begin_call(name)
            writer.close()
            return
        while True:
            yield from source.space()
            if output.call_open and (yield from source.accept(")")):  # a comma after the last
                break
            key = (yield from source.until("=")).strip()
            if not key.isidentifier():
                raise UnexpectedTextError
            if not output.call_open:
                output.begin_call(name)
            text = yield from _value(source)
            value = literal(text.strip(), _NOT_A_LITERAL)
            writer.key(key)
            writer.value(text.strip() if value is _NOT_A_LITERAL else value)
            if source.take(1) == ")":
                break
        writer.close()


def _value(source: TextSource) -> Steps[str]:
    """Read up to the comma or bracket that ends a value, which is left."""
    taken: list[str] = []
    depth, quote, escaped = 0, "", False
    while len(taken) < _MOST_CHARACTERS:
        char = yield from source.peek()
        if not char:
            break
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif depth and char in ")]}":
            depth -= 1
        elif not depth and char in ",)":
            return "".join(taken)
        taken.append(source.take(1))
    raise UnexpectedTextError
