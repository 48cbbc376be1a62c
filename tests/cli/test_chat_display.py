"""Rendering, wrapping and parsing in the chat REPL, without a terminal."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from llmctl.cli.repl.line_input import Command, is_block_open, parse_input
from llmctl.cli.repl.markdown import THEME, render_markdown, split_blocks
from llmctl.cli.repl.terminal import WrittenRows, escape_control_characters, wrap_text

BLOCKS = [
    "# 题\n",
    "- a\n",
    "  - 乙\n",
    "1. x\n",
    "> 引\n",
    "```python\n",
    "```\n",
    "    code\n",
    "---\n",
]
# GFM drops the cells of a row beyond those of the header, such as the last of "word | 丙 | 1 |".
TABLES = ["| 甲 | b |\n", "| --- | :-: |\n", "| 丙 | 1 |\n"]
WORDS = [
    "word ",
    "中文字，。",
    "http://an.address/of/more/than/forty/columns/in/one/word",
    "e\u0301",
]
MARKS = ["***", "**", "`", "_", "[l](http://x)", "![i](u)", "<b>", "\\", "[1]: http://e\n", "\t"]
PIECES = st.sampled_from([*BLOCKS, *TABLES, *WORDS, *MARKS, "\n", "\n\n", "👩\u200d👩\u200d👧"])


def drawn(source: str, width: int) -> list[str]:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, theme=THEME, color_system="256"
    )
    return [Text.from_ansi(row).plain for row in render_markdown(source, console)]


def chinese(text: str) -> list[str]:
    return sorted(character for character in text if "\u4e00" <= character <= "\u9fff")


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join), st.sampled_from([20, 40, 80]))
def test_markdown_is_complete_and_fits_the_width(source: str, width: int) -> None:
    assert "\n".join(split_blocks(source)) == source
    rows = drawn(source, width)
    assert chinese("".join(rows)) == chinese(source)
    assert max(map(cell_len, rows), default=0) <= width


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join), st.lists(PIECES, max_size=10).map("".join))
def test_complete_blocks_do_not_depend_on_later_text(text: str, more: str) -> None:
    # An incomplete line could still become part of the block above it.
    source = f"{text}\n"
    complete = split_blocks(source)[:-1]
    assert split_blocks(source + more)[: len(complete)] == complete


def test_lines_break_between_chinese_characters_but_not_before_punctuation() -> None:
    assert wrap_text("今天天气很好，我们去公园。", 12) == ["今天天气很", "好，我们去公", "园。"]
    assert wrap_text("看这（括号）里", 6) == ["看这", "（括", "号）里"]
    assert wrap_text("a long English sentence", 10) == ["a long", "English", "sentence"]
    assert wrap_text("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def test_layout_of_lists_code_and_tables() -> None:
    source = (
        "9. neun\n10. zehn\n    - unter\n\n```sh title\nls\n```\n\n| a | 名 |\n|--|--|\n| 1 | 二 |"
    )
    assert drawn(source, 30) == [
        "  9. neun",
        " 10. zehn",
        "      • unter",
        "",
        "```sh title",
        "ls",
        "```",
        "",
        "a  名",
        "─────",
        "1  二",
    ]


def test_control_characters_are_shown_as_symbols() -> None:
    assert escape_control_characters("a\x1b[2Jb\x07\r\n\tc\x9b1m") == "a␛[2Jb␇\n\tc\ufffd1m"


@pytest.mark.parametrize(
    ("text", "pasted", "meant"),
    [
        ("/help", False, Command("help")),
        ("/help", True, Command("help")),
        ("/set  top_p 0.5 ", False, Command("set", "top_p 0.5")),
        ('/system """one\ntwo"""', False, Command("system", "one\ntwo")),
        ("/nothing here", False, Command("nothing", "here")),
        ("/nothing here", True, "/nothing here"),
        ("/help\nme", True, "/help\nme"),
        ("/etc/hosts", False, "/etc/hosts"),
        ("//help", False, "/help"),
        (" /help", False, "/help"),
        ('"""\na\n\nb\n"""', False, "a\n\nb"),
        ('say """', False, 'say """'),
        ("  ", False, ""),
    ],
)
def test_input_is_parsed_as_command_or_message(
    text: str, pasted: bool, meant: Command | str
) -> None:
    assert parse_input(text, pasted=pasted, known={"help", "set", "system"}) == meant


def test_block_is_open_until_its_closing_quotes() -> None:
    assert is_block_open('"""one')
    assert is_block_open('/system """one\n')
    assert not is_block_open('"""one\ntwo"""')
    assert not is_block_open('what does """ mean')


@given(st.text("ab 中，", max_size=300), st.lists(st.integers(6, 60), min_size=1, max_size=6))
def test_no_text_is_lost_when_the_width_changes(text: str, widths: list[int]) -> None:
    written, shown, end = WrittenRows(), "", 0
    for width in widths:
        end += len(text) // len(widths)
        rows = written.remaining(wrap_text(text[:end], width), width)[:-1]
        written.add(rows)
        shown += "".join(rows)
    shown += "".join(written.remaining(wrap_text(text, widths[-1]), widths[-1]))
    # A row may be there twice, in part; every sign is there, in order.
    left = iter(shown)
    assert all(sign in left for sign in text if not sign.isspace())
