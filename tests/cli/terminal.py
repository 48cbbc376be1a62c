"""A command on a pseudo-terminal, and an emulator of its screen."""

import os
import re
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import pexpect
import pyte

from tests.cli.process import COMMAND

TIMEOUT_S = 40.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_=>])")


class Terminal:
    """Runs a command on a pseudo-terminal. Leaving the context ends it."""

    def __init__(
        self,
        *words: str,
        command: Sequence[str] = COMMAND,
        columns: int = 80,
        rows: int = 24,
        **env: str,
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self._process = pexpect.spawn(
            command[0],
            [*command[1:], *words],
            encoding="utf-8",
            codec_errors="replace",
            timeout=TIMEOUT_S,
            dimensions=(rows, columns),
            env=inherited | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""} | env,
        )
        self.raw = ""
        """Everything that the process has written."""
        self._mark = 0
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

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
        self._process.send(keys)

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
        try:
            text = self._process.read_nonblocking(65536, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += text
        self._stream.feed(text)
        return True

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window."""
        self._process.setwinsize(rows, columns)
        self._screen.resize(rows, columns)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.send("\x03")

    def end(self) -> int:
        """Wait for the process to end; return its exit code."""
        while self._read():
            pass
        self._process.close()
        code = self._process.exitstatus
        return -1 if code is None else int(code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.close(force=True)
