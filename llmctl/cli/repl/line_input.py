"""Line input of the chat REPL: editor, history, paste handling and the parsing of commands."""

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import Completer
from prompt_toolkit.filters import Condition, has_focus, is_searching
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, create_output

from llmctl.cli.repl.terminal import supports_escape_sequences
from llmctl.config import store_home

PROMPT: Final = ">>> "
_CONTINUATION: Final = "... "
BLOCK: Final = '"""'
_COMMAND: Final = re.compile(r"/([^\s/]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command."""

    name: str
    argument: str = ""


def is_block_open(text: str) -> bool:
    """Return whether a triple-quoted block is not closed yet, so that Enter adds a line."""
    _, quotes, rest = text.partition(BLOCK)
    return bool(quotes) and _may_start_block(text) and BLOCK not in rest


def parse_input(text: str, *, pasted: bool, known: Collection[str]) -> Command | str:
    """Return the command in an input, or the message.

    An input that starts with a blank or two slashes is a message, and so is one whose first word
    has another slash, such as a path. Pasted text is a message unless it is one line with a known
    command.

    Args:
        known: names of commands.
    """
    if text[:1].isspace():
        return _unquote(text.strip())
    if text.startswith("//"):
        return text[1:].strip()
    match = _COMMAND.fullmatch(text.strip())
    if match is None:
        return _unquote(text.strip())
    name, argument = match.group(1).lower(), (match.group(2) or "").strip()
    if pasted and (name not in known or "\n" in text.strip()):
        return text.strip()
    return Command(name, _unquote(argument))


def _may_start_block(text: str) -> bool:
    before = text.partition(BLOCK)[0].strip()
    return not before or bool(re.fullmatch(r"/[^\s/]+", before))


def _unquote(text: str) -> str:
    """Remove the triple quotes around a block."""
    quoted = text.startswith(BLOCK) and text.endswith(BLOCK) and len(text) >= 2 * len(BLOCK)
    return text[len(BLOCK) : -len(BLOCK)].strip("\n") if quoted else text


class LineReader(Protocol):
    """Reads the input of the user."""

    pasted: bool
    """Whether the last input starts with pasted text."""

    def read(self, default: str = "") -> str:
        """Return the next input, which the user edits from `default`.

        Raises:
            KeyboardInterrupt: Ctrl-C at an empty prompt.
            EOFError: Ctrl-D at an empty prompt.
        """

    def choose(self, question: str, choices: Iterable[str]) -> str:
        """Return the choice of the user; Ctrl-C or Ctrl-D is the last choice."""


def create_line_reader(completer: Completer, *, history: bool) -> LineReader:
    """Return a reader for this terminal.

    Args:
        history: store the inputs in llmctl's home folder.
    """
    if supports_escape_sequences():
        return LineEditor(completer, history=history)
    return PlainLineReader()


class PlainLineReader:
    """Reads lines from a terminal without escape sequences, in the terminal's own line mode."""

    pasted = False

    def read(self, default: str = "") -> str:  # noqa: ARG002  such a terminal cannot edit it
        text = input(PROMPT)
        while text.endswith("\\") or is_block_open(text):
            text = text.removesuffix("\\") + "\n" + input(_CONTINUATION)
        return text

    def choose(self, question: str, choices: Iterable[str]) -> str:
        return _read_choice(lambda: input(question), choices)


def _read_choice(read: Callable[[], str], choices: Iterable[str]) -> str:
    words = tuple(choices)
    while True:
        try:
            answer = read().strip().lower()
        except (KeyboardInterrupt, EOFError):
            return words[-1]
        matches = [word for word in words if answer and word.startswith(answer)]
        if matches:
            return matches[0]


class LineEditor:
    """Reads with `prompt_toolkit`: editing, history, completion and bracketed paste."""

    def __init__(self, completer: Completer, *, history: bool) -> None:
        self.pasted = False
        self._output = create_output(always_prefer_tty=True)
        # A late reply to a cursor position request would become part of the next input.
        if hasattr(self._output, "enable_cpr"):
            self._output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            history=_open_history() if history else InMemoryHistory(),
            completer=completer,
            complete_while_typing=Condition(self._is_typing_command),
            auto_suggest=AutoSuggestFromHistory(),
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=self._key_bindings(),
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            output=self._output,
            color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
        )

    def read(self, default: str = "") -> str:
        self.pasted = False
        return self._session.prompt(PROMPT, default=default)

    def choose(self, question: str, choices: Iterable[str]) -> str:
        session: PromptSession[str] = PromptSession(output=self._output)
        return _read_choice(lambda: session.prompt(question), choices)

    def _is_typing_command(self) -> bool:
        text = self._session.default_buffer.text
        return text.startswith("/") and "\n" not in text

    def _key_bindings(self) -> KeyBindings:
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
                # The history keeps a cleared input, so that Up brings it back.
                buffer.append_to_history()
                buffer.reset()
                self.pasted = False
            else:
                event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        return keys


def _continuation(width: int, line: int, wrapped: int) -> str:  # noqa: ARG001  signature of prompt_toolkit
    return " " * width if wrapped else _CONTINUATION


def _open_history() -> History:
    """Return the history of all conversations, or one in memory if the file cannot be written."""
    file = store_home() / "chat-history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))
