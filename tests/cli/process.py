"""Runs `llmctl` in another process with real streams and signals, or in this process.

`run_in_process` saves the seconds that another process would need to import the libraries.
"""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from llmctl.cli.app import main

COMMAND = [sys.executable, "-m", "llmctl"]


def run_process(
    *words: str, stdin: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Without `stdin` the input is empty, and not a terminal."""
    return subprocess.run(
        [*COMMAND, *words],
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env=os.environ | env,
        check=False,
    )


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


def error_lines(stderr: str) -> Sequence[str]:
    """Return the stderr lines of a failed command, which must not have a traceback."""
    assert "Traceback" not in stderr
    return stderr.strip().splitlines()
