"""A command on a pseudo-terminal, and an emulator of its screen."""

import codecs
import fcntl
import os
import re
import select
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte

from tests.cli.fork_server import FORK_SERVER

TIMEOUT_S = 120.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_=>])")


class Terminal:
    """Runs `llmctl` on a pseudo-terminal. Leaving the context ends it.

    Args:
        words: arguments of the command.
        stdout: file to redirect stdout to.
        env: environment variables.
    """

    def __init__(
        self,
        *words: str,
        stdout: Path | None = None,
        columns: int = 80,
        rows: int = 24,
        **env: str,
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self._master, terminal = os.openpty()
        self._set_size(columns, rows)
        out = terminal if stdout is None else os.open(stdout, os.O_CREAT | os.O_WRONLY)
        self._command = FORK_SERVER.start(
            words,
            (terminal, out, terminal),
            inherited | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""} | env,
            new_session=True,
        )
        for file in {terminal, out}:
            os.close(file)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.raw = ""
        """Everything that the process has written."""
        self._mark = 0
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)

    @property
    def pid(self) -> int:
        return self._command.pid

    @property
    def rows(self) -> list[str]:
        """Rows of the screen, without trailing blank ones."""
        return "\n".join(row.rstrip() for row in self._screen.display).rstrip().split("\n")

    @property
    def output(self) -> str:
        """Output since the last `send`, without escape sequences."""
        return _ESCAPES.sub("", self.raw[self._mark :]).replace("\r", "")

    def send(self, keys: str) -> None:
        """Type keys."""
        self._mark = len(self.raw)
        os.write(self._master, keys.encode())

    def paste(self, text: str) -> None:
        """Paste a text as a terminal in bracketed paste mode does."""
        assert "\x1b[?2004h" in self.raw
        self.send(f"\x1b[200~{text.replace(chr(10), chr(13))}\x1b[201~")

    def wait(self, text: str, *, prompt: bool = False) -> str:
        """Wait for a text in the output since the last `send`, and optionally a prompt after it."""
        self._until(lambda: text in self.output, text)
        if prompt:
            self._until(
                lambda: ">>>" in self.output.rpartition(text)[2], f"a prompt after {text!r}"
            )
        return self.output

    def ask(self, line: str, text: str) -> str:
        """Type a line, and wait for a text and a prompt after it."""
        self.send(line + "\r")
        return self.wait(text, prompt=True)

    def see(self, *rows: str) -> None:
        """Wait until these rows are on the screen, directly below each other."""
        wanted = "\n".join(rows)
        self._until(lambda: wanted in "\n".join(self.rows), wanted)

    def _until(self, condition: Callable[[], bool], wanted: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline or not self._read():
                shown = "\n".join(self.rows)
                raise AssertionError(f"timeout while waiting for {wanted!r}; the screen:\n{shown}")

    def _read(self) -> bool:
        """Read available output. Return `False` if the process has ended."""
        if not select.select([self._master], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the last process has closed the terminal
            return False
        text = self._decoder.decode(data)
        self.raw += text
        self._stream.feed(text)
        return bool(data)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window."""
        self._set_size(columns, rows)
        self._screen.resize(rows, columns)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.send("\x03")

    def end(self) -> int:
        """Wait for the process to end; return its exit code."""
        while self._read():
            pass
        return self._command.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._command.kill()
        self._command.wait()
        os.close(self._master)
