"""Runs `llmctl` as a person's shell does: another process, real streams, real signals."""

import os
import subprocess
import sys
from collections.abc import Sequence

COMMAND = [sys.executable, "-m", "llmctl"]


def run(*words: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Without `stdin` it is empty, not a terminal."""
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


def error_lines(stderr: str) -> Sequence[str]:
    """Return what a failed command told the person."""
    assert "Traceback" not in stderr
    return stderr.strip().splitlines()
