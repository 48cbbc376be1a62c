"""MiniMax M3's calls: nested elements, each tag after a mark that text does not contain."""

from dataclasses import dataclass
from typing import Any

from llmctl.engine.chat.parsing.parameter_types import ToolParameters, literal
from llmctl.engine.chat.parsing.response_output import ArgumentWriter, ResponseOutput
from llmctl.engine.chat.parsing.sections import read_section
from llmctl.engine.chat.parsing.text_source import Steps, TextSource, UnexpectedTextError
from llmctl.engine.chat.parsing.tool_names import check_name

_UNKNOWN = ToolParameters({})
_ITEM = "item"
_MOST_NESTED = 100


@dataclass(frozen=True, slots=True)
class ElementCalls:
    """Reader of `N<tool_call> N<invoke name="NAME">N<key>valueN</key>N</invoke> N</tool_call>`.

    N is the mark. Elements named `item` are the items of a list, other elements within an element
    are the keys of an object.
    """

    mark: str = "]<]minimax[>["
    bare: bool = False
    line_start: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        """See `CallReader.openings`."""
        return (f"{self.mark}<tool_call>",)

    @property
    def marks(self) -> tuple[str, ...]:
        """See `CallReader.marks`."""
        return (f"{self.mark}<tool_call>", f"{self.mark}</tool_call>")

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """See `CallReader.read`."""
        del opening  # there is one only
        yield from read_section(
            source,
            output,
            call=f'{self.mark}<invoke name="',
            end=f"{self.mark}</tool_call>",
            read_call=self._call,
            inside=True,
        )

    def _call(self, source: TextSource, output: ResponseOutput) -> Steps[None]:
        name = check_name((yield from source.until('">')))
        output.begin_call(name)
        source.release()
        types = output.tools.get(name, _UNKNOWN)
        writer = ArgumentWriter(output)
        while True:
            yield from source.space()
            tag = yield from self._tag(source)
            if tag == "/invoke":
                break
            writer.key(tag)
            writer.value((yield from self._value(source, tag, types, 0)))
        writer.close()

    def _tag(self, source: TextSource) -> Steps[str]:
        yield from source.expect(f"{self.mark}<")
        return (yield from source.until(">"))

    def _value(
        self, source: TextSource, tag: str, types: ToolParameters | None, depth: int
    ) -> Steps[Any]:
        """Read what an element holds, and its closing tag."""
        if depth > _MOST_NESTED:
            raise UnexpectedTextError
        pieces: list[str] = []
        if (yield from source.stream([f"{self.mark}<"], pieces.append)) is None:
            raise UnexpectedTextError
        text = "".join(pieces)
        children: list[tuple[str, Any]] = []
        while (inner := (yield from self._tag(source))) != f"/{tag}":
            if inner.startswith("/"):
                raise UnexpectedTextError
            children.append((inner, (yield from self._value(source, inner, None, depth + 1))))
            yield from source.space()
        if children:
            if all(name == _ITEM for name, _ in children):
                return [value for _, value in children]
            return dict(children)
        return literal(text.strip(), text) if types is None else types.value(tag, text)
