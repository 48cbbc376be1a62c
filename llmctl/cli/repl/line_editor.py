"""How are lines read from a person: edited, pasted, remembered and completed?"""

import os
from collections.abc import Callable, Iterable
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import Completer
from prompt_toolkit.filters import Condition, has_focus, is_searching
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, create_output

from llmctl.cli.repl.display import supports_escape_sequences
from llmctl.cli.repl.input_parser import is_block_open
from llmctl.config import store_home

PROMPT = ">>> "
_ON_LINES = "... "


class LineReader(Protocol):
    """Reads what a person writes."""

    pasted: bool
    """Whether the text that was read last begins with something pasted."""

    def read(self, default: str = "") -> str:
        """Return the next text, which begins as `default`.

        Raises:
            KeyboardInterrupt: Ctrl-C at an empty prompt.
            EOFError: Ctrl-D there.
        """

    def choose(self, question: str, choices: Iterable[str]) -> str:
        """Return which of some words a person chooses; Ctrl-C or Ctrl-D is the last one."""


def create_line_reader(completer: Completer, *, history: bool) -> LineReader:
    """Return what reads from this terminal.

    Args:
        history: remember what was written, in llmctl's folder.
    """
    return (
        LineEditor(completer, history=history) if supports_escape_sequences() else PlainLineReader()
    )


class PlainLineReader:
    """Reads lines from a terminal that can do nothing but that."""

    pasted = False

    def read(self, default: str = "") -> str:  # noqa: ARG002  it cannot be edited here
        text = input(PROMPT)
        while text.endswith("\\") or is_block_open(text):
            text = text.removesuffix("\\") + "\n" + input(_ON_LINES)
        return text

    def choose(self, question: str, choices: Iterable[str]) -> str:
        return _chosen(lambda: input(question), choices)


def _chosen(ask: Callable[[], str], choices: Iterable[str]) -> str:
    known = tuple(choices)
    while True:
        try:
            answer = ask().strip().lower()
        except (KeyboardInterrupt, EOFError):
            return known[-1]
        found = [word for word in known if answer and word.startswith(answer)]
        if found:
            return found[0]


class LineEditor:
    """Reads with an editor of lines: paste-safe, with history and completion."""

    def __init__(self, completer: Completer, *, history: bool) -> None:
        self.pasted = False
        self._output = create_output(always_prefer_tty=True)
        # A terminal's late answer to where its cursor is would become input of what comes next.
        if hasattr(self._output, "enable_cpr"):
            self._output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            history=_history() if history else InMemoryHistory(),
            completer=completer,
            complete_while_typing=Condition(self._begins_command),
            auto_suggest=AutoSuggestFromHistory(),
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=self._keys(),
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            output=self._output,
            color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
        )

    def read(self, default: str = "") -> str:
        self.pasted = False
        return self._session.prompt(PROMPT, default=default)

    def choose(self, question: str, choices: Iterable[str]) -> str:
        asked: PromptSession[str] = PromptSession(output=self._output)
        return _chosen(lambda: asked.prompt(question), choices)

    def _begins_command(self) -> bool:
        text = self._session.default_buffer.text
        return text.startswith("/") and "\n" not in text

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        editing = has_focus("DEFAULT_BUFFER") & ~is_searching

        @keys.add("enter", filter=editing)
        def _enter(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            document = buffer.document
            if document.is_cursor_at_the_end and document.text.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.newline(copy_margin=False)
            elif is_block_open(document.text):
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=editing)
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add(Keys.BracketedPaste, filter=editing)
        def _paste(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if not buffer.text[: buffer.cursor_position].strip():
                self.pasted = True
            buffer.insert_text(event.data.replace("\r\n", "\n").replace("\r", "\n"))

        @keys.add("c-c", filter=editing)
        def _interrupt(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.text:
                # It can be had back: a slip of the hand must not cost a long question.
                buffer.append_to_history()
                buffer.reset()
                self.pasted = False
            else:
                event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        return keys


def _continuation(width: int, line: int, wrapped: int) -> str:  # noqa: ARG001
    return " " * width if wrapped else _ON_LINES


def _history() -> History:
    """Return the history of all conversations, or one that is forgotten where none can be kept."""
    file = store_home() / "chat-history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))
