"""Runs `llmctl` in a process of its own with real streams and signals, or in this process.

A process is forked from one that has imported the libraries (`fork_server`), because importing them
takes seconds. `run_in_process` needs no process at all.
"""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, NamedTuple, Self
from unittest.mock import patch

from llmctl.cli.app import main
from tests.cli.fork_server import FORK_SERVER, ForkedCommand

COMMAND = [sys.executable, "-m", "llmctl"]


class RunningCommand:
    """`llmctl` in another process, with pipes as stdout and stderr. The context kills it."""

    def __init__(self, *words: str, new_session: bool = False, **env: str) -> None:
        out, out_writer = os.pipe()
        err, err_writer = os.pipe()
        stdin = os.open(os.devnull, os.O_RDONLY)
        self._command: ForkedCommand = FORK_SERVER.start(
            words, (stdin, out_writer, err_writer), os.environ | env, new_session=new_session
        )
        for file in (stdin, out_writer, err_writer):
            os.close(file)
        self.stdout: IO[str] = os.fdopen(out, encoding="utf-8")
        self.stderr: IO[str] = os.fdopen(err, encoding="utf-8")

    @property
    def pid(self) -> int:
        return self._command.pid

    def send_signal(self, number: int) -> None:
        self._command.send_signal(number)

    def poll(self) -> int | None:
        return self._command.poll()

    def wait(self) -> int:
        """Return the exit code, or the negative number of the signal."""
        return self._command.wait()

    def communicate(self) -> tuple[int, str, str]:
        """Return the exit code and the rest of stdout and stderr, which must be short."""
        code = self.wait()
        return code, self.stdout.read(), self.stderr.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._command.kill()
        self._command.wait()
        self.stdout.close()
        self.stderr.close()


def run_process(
    *words: str, stdin: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Without `stdin` the input is empty, and not a terminal."""
    with (
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        source.write((stdin or "").encode())
        source.seek(0)
        files = (source.fileno(), out.fileno(), err.fileno())
        code = FORK_SERVER.start(words, files, os.environ | env).wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, code, out.read().decode(), err.read().decode())


def run_in_process(*words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in this process. No stream is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode(errors="surrogateescape")))
        ),
        patch.dict(os.environ, env),
    ):
        try:
            main(list(words))
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


class Ended(NamedTuple):
    """An ended command: its exit code, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def cells(self) -> list[list[str]]:
        """Cells of the table on stdout."""
        return [line.split("\t") for line in self.out.splitlines()]


CommandRunner = Callable[..., Ended]


def command_runner(*first: str) -> CommandRunner:
    """Return a function that runs a command in this process with further words."""

    def run(*words: str | Path) -> Ended:
        done = run_in_process(*first, *map(str, words))
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def error_lines(stderr: str) -> Sequence[str]:
    """Return the stderr lines of a failed command, which must not have a traceback."""
    assert "Traceback" not in stderr
    return stderr.strip().splitlines()
