"""A person at a terminal: a process on a pseudo-terminal, and an emulator that shows its screen."""

import os
import re
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import pexpect
import pyte

from tests.cli.process import COMMAND

PATIENCE_S = 120.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_=>])")


class Terminal:
    """Runs a command as if somebody sat there. Leaving the context ends it."""

    def __init__(
        self,
        *words: str,
        command: Sequence[str] = COMMAND,
        columns: int = 80,
        rows: int = 24,
        **env: str,
    ) -> None:
        settled = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self._process = pexpect.spawn(
            command[0],
            [*command[1:], *words],
            encoding="utf-8",
            codec_errors="replace",
            timeout=PATIENCE_S,
            dimensions=(rows, columns),
            env=settled | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""} | env,
        )
        self.raw = ""
        """All that the process has written."""
        self._mark = 0
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def rows(self) -> list[str]:
        """What is on the screen, without blank rows at the end."""
        return "\n".join(row.rstrip() for row in self._screen.display).rstrip().split("\n")

    @property
    def said(self) -> str:
        """What has come since the last `send`, without escape sequences."""
        return _ESCAPES.sub("", self.raw[self._mark :]).replace("\r", "")

    def send(self, keys: str) -> None:
        """Type keys."""
        self._mark = len(self.raw)
        self._process.send(keys)

    def paste(self, text: str) -> None:
        """Paste as a terminal does that was asked to bracket what is pasted."""
        assert "\x1b[?2004h" in self.raw
        self.send(f"\x1b[200~{text.replace(chr(10), chr(13))}\x1b[201~")

    def wait(self, text: str, *, prompt: bool = False) -> str:
        """Wait until a text has come since the last `send`, and then perhaps a prompt."""
        self._until(lambda: text in self.said, text)
        if prompt:
            self._until(lambda: ">>>" in self.said.rpartition(text)[2], f"a prompt after {text!r}")
        return self.said

    def ask(self, line: str, text: str) -> str:
        """Type a line, and wait for a text and for the prompt after it."""
        self.send(line + "\r")
        return self.wait(text, prompt=True)

    def see(self, *rows: str) -> None:
        """Wait until these rows are on the screen, one below the other."""
        wanted = "\n".join(rows)
        self._until(lambda: wanted in "\n".join(self.rows), wanted)

    def _until(self, condition: Callable[[], bool], wanted: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline or not self._read():
                shown = "\n".join(self.rows)
                raise AssertionError(f"waited in vain for {wanted!r}; the screen:\n{shown}")

    def _read(self) -> bool:
        """Take what is there. False: the process has ended."""
        try:
            piece = self._process.read_nonblocking(65536, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += piece
        self._stream.feed(piece)
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
