"""Calls as JSON objects that hold the name and the arguments, alone or in a list, between marks."""

import json
from dataclasses import dataclass
from typing import Any

from llmctl.engine.chat.parsing.json_text import read_string, read_value, stream_value
from llmctl.engine.chat.parsing.response_output import ResponseOutput
from llmctl.engine.chat.parsing.text_source import Steps, TextSource, UnexpectedTextError

_NAMES = ("name", "tool_name", "function", "function_name")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_KEYS = frozenset({*_NAMES, *_ARGUMENTS, "id", "type"})
"""Of a call that no mark announces."""


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Reader of `OPEN {"name": ..., "arguments": ...} CLOSE` and `OPEN [{...}, {...}] CLOSE`."""

    openings: tuple[str, ...] = ()
    closings: tuple[str, ...] = ()
    bare: bool = False
    line_start: bool = False
    name_is_key: bool = False
    """Whether a call is written `{"NAME": {...}}`."""
    id_key: str = ""
    """Key of the id after the arguments; the call is written once it is known."""

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        return self.openings + self.closings

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        yield from source.space()
        in_list = (yield from source.accept("[")) is not None
        yield from source.space()
        yield from self._call(source, output, known_only=not opening)
        while True:
            start = source.position
            yield from source.space()
            if (yield from source.accept("," if in_list else ";")):
                yield from source.space()
            if (yield from source.starts("{")) is None:
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
        if self.closings and opening:
            start = source.position
            yield from source.space()
            if (yield from source.accept(*self.closings)) is None:
                source.rewind(start)

    def _call(self, source: TextSource, output: ResponseOutput, *, known_only: bool) -> Steps[None]:
        yield from source.expect("{")
        name = call_id = ""
        arguments: str | None = None
        written = False
        while True:
            yield from source.space()
            if (yield from source.accept("}")):
                break
            key = yield from read_string(source)
            yield from source.space()
            yield from source.expect(":")
            yield from source.space()
            char = yield from source.peek()
            if self.name_is_key:
                name = key
            elif known_only and key not in _KEYS:
                raise UnexpectedTextError  # an answer in JSON, which need not be read to its end
            if (self.name_is_key or key in _ARGUMENTS) and not written and arguments is None:
                if name and char == "{" and not self.id_key:
                    self._check(name, output, known_only)
                    output.begin_call(name)
                    source.release()
                    written = True
                    if not (yield from stream_value(source, output.arguments)):
                        yield from source.stream(self.closings, output.arguments)
                        output.end_call()
                        return
                else:
                    arguments = _arguments((yield from read_value(source)))
            elif key in _NAMES and not name and char == '"':
                name = yield from read_string(source)
            elif key == "function" and char == "{":
                name, arguments = _function((yield from read_value(source)))
            else:
                value = yield from read_value(source)
                if key == self.id_key:
                    call_id = value.strip('"')
            yield from source.space()
            if (yield from source.accept(",")) is None and (yield from source.peek()) != "}":
                if written:  # the object is not closed: the call is complete all the same
                    output.end_call()
                    return
                raise UnexpectedTextError
        if not written:
            self._check(name, output, known_only)
            output.begin_call(name, call_id)
            output.arguments(arguments or "{}")
        output.end_call()

    @staticmethod
    def _check(name: str, output: ResponseOutput, known_only: bool) -> None:
        if not name or (known_only and name not in output.tools):
            raise UnexpectedTextError


def _arguments(text: str) -> str:
    """Return arguments that may be written as a JSON string with JSON in it."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, str):
        return value
    return "{}" if value is None else text


def _function(text: str) -> tuple[str, str | None]:
    """Return name and arguments of a call in OpenAI's form."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnexpectedTextError from error
    if not isinstance(value.get("name"), str):
        raise UnexpectedTextError
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    if arguments is None or isinstance(arguments, str):
        return value["name"], arguments
    return value["name"], json.dumps(arguments, ensure_ascii=False)
