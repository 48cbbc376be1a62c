"""Prints a row token by token: in colour on a terminal, with signs elsewhere."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.cli import render

if TYPE_CHECKING:
    from rich.console import Console

    from llmctl.data.tokenized.loss_mask import MaskedSequence
    from llmctl.services.data import TokenizedRow

_STYLES = {
    True: ("black on green", "black on bright_green"),
    False: ("default", "white on bright_black"),
}
"""Neighbouring tokens differ, so that their borders show."""
_PART = "·"
"""A token that is part of a character which an earlier one shows."""


def print_rows(rows: "Sequence[TokenizedRow]") -> None:
    """Print rows, each with a line that says what it is."""
    console = _console()
    for row in rows:
        origin = row.example.origin
        for sequence in row.sequences:
            part = f", {sequence.part}" if sequence.part else ""
            render.print_line(
                f"{origin.file}:{origin.line}{part}: {len(sequence.ids):,} tokens, "
                f"{sum(sequence.loss_mask):,} learnt ({row.example.format})"
            )
            if sequence.note:
                render.print_line(f"note: {sequence.note}")
            if console is None:
                _print_signs(sequence)
            else:
                _print_colours(console, sequence)
        if not row.sequences:
            render.print_line(f"{origin.file}:{origin.line}: nothing of this row is learnt")
    if console is None:
        render.print_line("[learnt] context| each token ends at a sign; ↵ is a line end")
    else:
        _legend(console)


def row_to_dict(row: "TokenizedRow") -> dict[str, Any]:
    """Return what JSON can say."""
    return {
        "file": row.example.origin.file,
        "line": row.example.origin.line,
        "row": row.number,
        "format": row.example.format,
        "sequences": [
            {
                "part": sequence.part,
                "note": sequence.note,
                "text": sequence.text,
                "tokens": [
                    {"id": token, "text": text, "learnt": learnt}
                    for token, (text, learnt) in zip(sequence.ids, _pieces(sequence), strict=True)
                ],
            }
            for sequence in row.sequences
        ],
    }


def _pieces(sequence: "MaskedSequence") -> Iterator[tuple[str, bool]]:
    """Yield each token's text; what no token stands for goes to the token before it."""
    shown = 0
    ends = [*(start for start, _ in sequence.offsets[1:]), len(sequence.text)]
    for (_, end), following, learnt in zip(sequence.offsets, ends, sequence.loss_mask, strict=True):
        until = max(shown, end, following)
        yield sequence.text[shown:until] or _PART, learnt
        shown = until


def _print_signs(sequence: "MaskedSequence") -> None:
    text = ""
    for piece, learnt in _pieces(sequence):
        visible = piece.replace("\n", "↵")
        breaks = "\n" * piece.endswith("\n")
        text += (f"[{visible}]" if learnt else f"{visible}|") + breaks
    render.print_line(text.rstrip("\n"))


def _print_colours(console: "Console", sequence: "MaskedSequence") -> None:
    from rich.text import Text

    text = Text()
    for number, (piece, learnt) in enumerate(_pieces(sequence)):
        style = _STYLES[learnt][number % 2]
        body = piece.rstrip("\n")
        text.append(body + "↵" * (len(piece) - len(body)), style)
        text.append("\n" * piece.endswith("\n"))
    text.rstrip()
    console.print(text, soft_wrap=True)


def _legend(console: "Console") -> None:
    from rich.text import Text

    text = Text("learnt: ")
    for learnt, words in ((True, ("tok", "en", "s")), (False, ("tok", "en", "s"))):
        for number, word in enumerate(words):
            text.append(word, _STYLES[learnt][number % 2])
        text.append("  context: " if learnt else "  (neighbours differ in shade; ↵ is a line end)")
    console.print(text, soft_wrap=True)


def _console() -> "Console | None":
    """Return a terminal that has colours, if stdout is one."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.color_system and not console.no_color else None
