"""Calls as a name and a JSON object of arguments, with marks around them."""

import re
from dataclasses import dataclass

from llmctl.engine.chat.formats.json_calls import JsonCalls
from llmctl.engine.chat.parsing.json_text import stream_value
from llmctl.engine.chat.parsing.response_output import ResponseOutput
from llmctl.engine.chat.parsing.sections import read_section
from llmctl.engine.chat.parsing.text_source import Steps, TextSource, UnexpectedTextError
from llmctl.engine.chat.parsing.tool_names import check_name


def read_arguments(
    source: TextSource, output: ResponseOutput, name: str, call_id: str, closing: str
) -> Steps[None]:
    """Read the arguments of a call and the mark that closes it.

    Raises:
        UnexpectedTextError: they are not a JSON object, or are cut off.
    """
    yield from source.space()
    if (yield from source.starts("{")) is None:
        if not closing or (yield from source.accept(closing)) is None:
            raise UnexpectedTextError
        output.begin_call(check_name(name), call_id)  # a call without arguments
        output.end_call()
        return
    output.begin_call(check_name(name), call_id)
    source.release()
    whole = yield from stream_value(source, output.arguments)
    if not whole and (
        not closing or (yield from source.stream([closing], output.arguments)) is None
    ):
        raise UnexpectedTextError
    output.end_call()
    if closing:
        start = source.position
        yield from source.space()
        if (yield from source.accept(closing)) is None:
            source.rewind(start)


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """Reader of `SECTION (CALL [id ID_END] name NAME_END {...} CLOSE)* SECTION_END`.

    The name may be written `functions.NAME:NUMBER`, which is then the id as well.
    """

    call: str
    name_end: str
    close: str = ""
    section: str = ""
    section_end: str = ""
    id_end: str = ""
    """Mark after an id that precedes the name."""
    name_has_index: bool = False
    bare: bool = False
    line_start: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        """See `CallReader.openings`."""
        return (self.section, self.call) if self.section else (self.call,)

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        inner = (self.name_end, self.close, self.section_end, self.id_end)
        return self.openings + tuple(mark for mark in inner if mark.strip())

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        yield from read_section(
            source,
            output,
            call=self.call,
            end=self.section_end,
            read_call=self._call,
            inside=opening != self.call,
        )

    def _call(self, source: TextSource, output: ResponseOutput) -> Steps[None]:
        call_id = ""
        if self.id_end:
            call_id = (yield from source.until(self.id_end)).strip()
        name = (yield from source.until(self.name_end)).strip()
        if self.name_has_index:
            call_id = name
            name = re.sub(r"^functions\.|:\d+$", "", name)
        yield from read_arguments(source, output, name, call_id, self.close)


@dataclass(frozen=True, slots=True)
class MistralCalls:
    """Reader of Mistral's calls: `MARK[{...}, {...}]`, and later `MARKname[ARGS]{...}`."""

    opening: str = "[TOOL_CALLS]"
    id_mark: str = "[CALL_ID]"
    arguments_mark: str = "[ARGS]"
    bare: bool = False
    line_start: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        """See `CallReader.openings`."""
        return (self.opening,)

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        return (self.opening, self.id_mark, self.arguments_mark)

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        yield from source.space()
        if (yield from source.starts("[", "{")):
            calls = JsonCalls(openings=self.openings, id_key="id")
            yield from calls.read(source, output, opening)
            return
        head = yield from source.until(self.arguments_mark)
        name, _, call_id = head.partition(self.id_mark)
        yield from read_arguments(source, output, name.strip(), call_id.strip(), "")


@dataclass(frozen=True, slots=True)
class DeepSeekCalls:
    """Reader of DeepSeek's calls: V3 and R1 write the arguments as a code block, V3.1 does not."""

    bare: bool = False
    line_start: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        """See `CallReader.openings`."""
        return ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        ends = ("<｜tool▁sep｜>", "```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
        return self.openings + ends

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        section, call = self.openings
        yield from read_section(
            source,
            output,
            call=call,
            end="<｜tool▁calls▁end｜>",
            read_call=self._call,
            inside=opening == section,
        )

    @staticmethod
    def _call(source: TextSource, output: ResponseOutput) -> Steps[None]:
        name = (yield from source.until("<｜tool▁sep｜>")).strip()
        end = "<｜tool▁call▁end｜>"
        if (yield from source.starts("{")):
            yield from read_arguments(source, output, name, "", end)
            return
        name = (yield from source.until("\n")).strip()
        yield from source.expect("```json")
        yield from source.space()
        yield from read_arguments(source, output, name, "", "```")
        yield from source.accept(end)


@dataclass(frozen=True, slots=True)
class RecipientCalls:
    """Reader of Functionary's messages `>>>NAME` and arguments, or `>>>all` and the answer.

    The prompt ends with the first `>>>`.
    """

    bare: bool = True
    line_start: bool = False
    opening: str = ">>>"

    @property
    def openings(self) -> tuple[str, ...]:
        """See `CallReader.openings`."""
        return (self.opening,)

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        return (self.opening,)

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        name = (yield from source.until("\n")).strip()
        if name == "all":
            return
        if not opening and name not in output.tools:
            raise UnexpectedTextError
        yield from read_arguments(source, output, name, "", "")
