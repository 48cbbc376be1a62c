"""Calls as a name and one element per parameter, whose values are text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmctl.engine.chat.parsing.parameter_types import ToolParameters
from llmctl.engine.chat.parsing.response_output import ArgumentWriter, ResponseOutput
from llmctl.engine.chat.parsing.sections import read_section
from llmctl.engine.chat.parsing.text_source import Steps, TextSource, UnexpectedTextError
from llmctl.engine.chat.parsing.tool_names import check_name

_UNKNOWN = ToolParameters({})
_FLAGS = {'string="true"': True, 'type="string"': True}
"""Attributes that say that a value is a string; any other attribute says that it is JSON."""


@dataclass(frozen=True, slots=True)
class ParameterCalls:
    """Reader of `SECTION (CALL name NAME_END (KEY key KEY_END value VALUE_END)* END)* SECTION_END`.

    The mark after a value counts only if a further parameter or the end of the call follows, so a
    value may hold it. White space between parameters has no meaning.
    """

    call: str
    name_end: tuple[str, ...]
    key: str
    key_end: str
    value_end: str
    end: str
    value: str = ""
    """Mark before a value, after that of its key."""
    section: str = ""
    section_end: str = ""
    newlines: bool = False
    """Whether values stand on lines of their own."""
    character_data: bool = False
    """Whether values may be written `<![CDATA[value]]>`."""
    bare: bool = False
    line_start: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        """See `CallReader.openings`."""
        return (self.section, self.call) if self.section else (self.call,)

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        inner = (self.key, self.key_end, self.value, self.value_end, self.end, self.section_end)
        names = tuple(mark for mark in self.name_end if mark not in inner)
        return self.openings + tuple(m for m in inner + names if len(m.strip()) > 2)

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        yield from read_section(
            source,
            output,
            call=self.call,
            end=self.section_end,
            read_call=self._call,
            inside=opening == self.section,
        )

    def _call(self, source: TextSource, output: ResponseOutput) -> Steps[None]:
        ends = tuple(mark for mark in (self.end, self.section_end) if mark)
        if self.key in self.name_end:  # the name ends where the first parameter begins
            head = yield from source.until(*self.name_end, *ends, keep_mark=True)
        else:
            head = yield from source.until(*self.name_end)
        name = check_name(head.strip().partition('"')[0])
        yield from source.space()
        if (yield from source.starts(self.key, *ends)) is None:
            raise UnexpectedTextError
        output.begin_call(name)
        source.release()
        types = output.tools.get(name, _UNKNOWN)
        writer = ArgumentWriter(output)
        while (yield from source.accept(self.key)):
            key, _, attribute = (yield from source.until(self.key_end)).partition('" ')
            if self.value:
                yield from source.space()
                if (yield from source.accept(self.value)) is None:
                    break
            key = key.strip().rstrip('"')
            is_string = _FLAGS.get(attribute, False) if attribute else types.is_string(key)
            writer.key(key)
            if is_string:
                yield from self._string(source, writer, ends)
            else:
                text = yield from self._text(source, ends)
                writer.value((_UNKNOWN if attribute else types).value(key, text))
            yield from source.space()
        closed = yield from source.accept(self.end)
        if closed is None and (yield from source.peek()) == "":
            raise UnexpectedTextError
        writer.close()

    def _string(
        self, source: TextSource, writer: ArgumentWriter, ends: Sequence[str]
    ) -> Steps[None]:
        """Write a string as it comes."""
        writer.quote()
        yield from self._value(source, writer.string_piece, ends)
        writer.quote()

    def _text(self, source: TextSource, ends: Sequence[str]) -> Steps[str]:
        pieces: list[str] = []
        yield from self._value(source, pieces.append, ends)
        return "".join(pieces)

    def _value(
        self, source: TextSource, write: Callable[[str], None], ends: Sequence[str]
    ) -> Steps[None]:
        """Write the text of a value, and read the mark after it.

        Raises:
            UnexpectedTextError: the response ends within it.
        """
        wrapped = self.newlines and (yield from source.accept("\n")) is not None
        closings = [f"\n{self.value_end}", self.value_end] if wrapped else [self.value_end]
        if self.character_data and (yield from source.accept("<![CDATA[")):
            closings = [f"]]>{self.value_end}"]
        while True:
            closing = yield from source.stream(closings, write)
            if closing is None:
                raise UnexpectedTextError
            start = source.position
            source.take(len(closing))
            yield from source.space()
            follows = (yield from source.starts(self.key, *ends)) is not None
            if follows or (yield from source.peek()) == "":
                return
            source.rewind(start)
            write(source.take(len(closing)))
