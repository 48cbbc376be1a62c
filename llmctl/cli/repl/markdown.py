"""Markdown for the terminal: `rich.markdown` with Chinese line breaking and copyable code.

`split_blocks` finds the blocks that can no longer change while a text is streamed.
"""

import re
from itertools import pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments.token import Error
from rich import markdown as parts
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.syntax import ANSI_DARK, ANSISyntaxTheme, Syntax
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from llmctl.cli.repl.terminal import line_breaks

# HTML, images and link definitions stay visible as text.
_PARSER = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["strikethrough", "table"])
    .disable(["reference", "image"])
)
_CODE_THEME = ANSISyntaxTheme(ANSI_DARK | {Error: Style()})
"""The sixteen colours of the terminal, which are legible on any background.

Incomplete code is not marked as an error.
"""
THEME = Theme(
    {
        "markdown.code": Style(color="cyan"),
        "markdown.h1": Style(bold=True, underline=True),
        "markdown.h2": Style(bold=True, underline=True),
        "markdown.h3": Style(bold=True),
        "markdown.h4": Style(bold=True),
        "markdown.block_quote": Style(italic=True),
        "markdown.item.number": Style(bold=True),
        "markdown.item.bullet": Style(bold=True),
        "markdown.table.border": Style(dim=True),
        "markdown.table.header": Style(bold=True),
        "markdown.hr": Style(dim=True),
        "markdown.link": Style(underline=True),
        "markdown.link_url": Style(color="blue"),
    }
)
_TAB = 4
_TRAILING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$")


class _Paragraph(parts.Paragraph):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _wrap_lines(self.text, options.max_width)


class _Heading(parts.Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _wrap_lines(self.text, options.max_width)


def _wrap_lines(text: Text, width: int) -> RenderResult:
    text.expand_tabs(_TAB)
    for line in text.divide(line_breaks(text.plain, max(width, 2))):
        line.rstrip()
        line.no_wrap, line.overflow = True, "ignore"
        yield line


class _CodeBlock(parts.CodeBlock):
    """Code with its fences and without margin, so that it can be copied from the screen."""

    info = ""

    @classmethod
    def create(cls, markdown: parts.Markdown, token: Token) -> "_CodeBlock":
        """Keep the whole info string of the fence; its first word is the language."""
        block = cls((token.info.split() or ["text"])[0], markdown.code_theme)
        block.info = token.info.strip()
        return block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fence = Style(dim=True)
        yield from _wrap_lines(Text(f"```{self.info}", fence), options.max_width)
        code = str(self.text).expandtabs(_TAB).rstrip("\n")
        coloured = Syntax(code, self.lexer_name, theme=_CODE_THEME).highlight(code)
        coloured.rstrip()
        yield from _wrap_lines(coloured, options.max_width)
        yield Segment("```", fence)
        yield Segment.line()


class _ListItem(parts.ListItem):
    """A list item with a period after its number."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        width = len(str(last_number)) + 3
        inner = options.update(width=max(options.max_width - width, 2))
        style = console.get_style("markdown.item.number")
        head = Segment(f"{number}. ".rjust(width), style)
        for line in console.render_lines(self.elements, inner, style=self.style):
            yield head
            yield from line
            yield Segment.line()
            head = Segment(" " * width)


class _Table(parts.TableElement):
    """A table without an outer edge, aligned with the text."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            box=SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
            collapse_padding=True,
            border_style="dim",
        )
        for cell in self.header.row.cells if self.header and self.header.row else ():
            heading = Text.assemble(cell.content, style="bold")
            table.add_column(heading, justify=cell.justify, overflow="fold")
        for row in self.body.rows if self.body else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


class _Rule(parts.HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment("─" * min(options.max_width, 40), console.get_style("markdown.hr"))
        yield Segment.line()


class _Markdown(parts.Markdown):
    elements: ClassVar[dict[str, type[parts.MarkdownElement]]] = {
        **parts.Markdown.elements,
        "paragraph_open": _Paragraph,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "hr": _Rule,
        "list_item_open": _ListItem,
        "table_open": _Table,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(source)
        for token in self.parsed:
            for child in token.children or ():
                # Keep line ends of the model: Chinese has no blanks between words.
                if child.type == "softbreak":
                    child.type = "hardbreak"


def render_markdown(source: str, console: Console) -> list[str]:
    """Return the rows of a Markdown text, with escape sequences for the colours of `console`."""
    with console.capture() as capture:
        console.print(_Markdown(source), end="", crop=False)
    rows = [_TRAILING.sub(r"\1", row) for row in capture.get().split("\n")]
    while rows and not Text.from_ansi(rows[-1]).plain.strip():
        rows.pop()
    while rows and not Text.from_ansi(rows[0]).plain.strip():
        rows.pop(0)
    return rows


def split_blocks(source: str) -> list[str]:
    """Split a text into its top-level blocks; more text can change only the last one."""
    tokens = (token for token in _PARSER.parse(source) if token.level == 0)
    starts = sorted({token.map[0] for token in tokens if token.map is not None})
    lines = source.split("\n")
    cuts = [0, *starts[1:], len(lines)]
    return ["\n".join(lines[begin:end]) for begin, end in pairwise(cuts)]
