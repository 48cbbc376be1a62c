"""View of `llmctl data show`: a row token by token, in colour or with brackets."""

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
"""Styles by loss mask; adjacent tokens alternate, so that their borders are visible."""
_PART = "·"
"""Stands for a token whose character is shown by an earlier token."""


def print_rows(rows: "Sequence[TokenizedRow]") -> None:
    """Print rows, each below a line with its location and token counts."""
    console = render.color_console()
    for row in rows:
        origin = row.example.origin
        for sequence in row.sequences:
            part = f", {sequence.part}" if sequence.part else ""
            render.print_line(
                f"{origin.file}:{origin.line}{part}: {len(sequence.ids):,} tokens, "
                f"{sum(sequence.loss_mask):,} trained ({row.example.format})"
            )
            if sequence.note:
                render.print_line(f"note: {sequence.note}")
            if console is None:
                _print_brackets(sequence)
            else:
                _print_colours(console, sequence)
        if not row.sequences:
            render.print_line(f"{origin.file}:{origin.line}: no token of this row is trained")
    if console is None:
        render.print_line("[trained] context| each token ends at a bracket or bar; ↵ is a line end")
    else:
        _legend(console)


def row_to_dict(row: "TokenizedRow") -> dict[str, Any]:
    """Return a row as JSON values."""
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
                    {"id": token, "text": text, "learnt": trained}
                    for token, (text, trained) in zip(sequence.ids, _pieces(sequence), strict=True)
                ],
            }
            for sequence in row.sequences
        ],
    }


def _pieces(sequence: "MaskedSequence") -> Iterator[tuple[str, bool]]:
    """Yield the text of each token, and whether it is trained.

    Text outside of any token belongs to the token before it.
    """
    shown = 0
    ends = [*(start for start, _ in sequence.offsets[1:]), len(sequence.text)]
    for (_, end), following, trained in zip(
        sequence.offsets, ends, sequence.loss_mask, strict=True
    ):
        until = max(shown, end, following)
        yield sequence.text[shown:until] or _PART, trained
        shown = until


def _print_brackets(sequence: "MaskedSequence") -> None:
    text = ""
    for piece, trained in _pieces(sequence):
        visible = piece.replace("\n", "↵")
        breaks = "\n" * piece.endswith("\n")
        text += (f"[{visible}]" if trained else f"{visible}|") + breaks
    render.print_line(text.rstrip("\n"))


def _print_colours(console: "Console", sequence: "MaskedSequence") -> None:
    from rich.text import Text

    text = Text()
    for number, (piece, trained) in enumerate(_pieces(sequence)):
        style = _STYLES[trained][number % 2]
        body = piece.rstrip("\n")
        text.append(body + "↵" * (len(piece) - len(body)), style)
        text.append("\n" * piece.endswith("\n"))
    text.rstrip()
    render.print_styled(console, text)


def _legend(console: "Console") -> None:
    from rich.text import Text

    text = Text("trained: ")
    for trained, words in ((True, ("tok", "en", "s")), (False, ("tok", "en", "s"))):
        for number, word in enumerate(words):
            text.append(word, _STYLES[trained][number % 2])
        text.append(
            "  context: " if trained else "  (adjacent tokens differ in shade; ↵ is a line end)"
        )
    render.print_styled(console, text)
