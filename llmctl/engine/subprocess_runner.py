"""Runs Python in a child process that ends when we do: for work that could not be stopped here."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

_POLL_SECONDS = 0.2


def run(
    arguments: list[str],
    log: Path,
    *,
    environment: Mapping[str, str],
    tick: Callable[[], None] = lambda: None,
    python: str = sys.executable,
    folder: Path | None = None,
) -> None:
    """Run Python with `arguments` to its end. Whatever ends this call ends the child.

    Args:
        arguments: what follows `python` on the command line.
        log: file that receives everything it prints.
        environment: variables on top of our own.
        tick: called a few times a second meanwhile.
        python: the interpreter; ours by default.
        folder: where it runs; here by default.

    Raises:
        CalledProcessError: it failed; `output` is all that it printed.
    """
    with (
        log.open("wb") as printed,
        # -P: what lies in the current folder must not stand in for a library.
        subprocess.Popen(
            [python, "-P", *arguments],
            stdin=subprocess.PIPE,  # closes when we die, see `exit_with_parent`
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            cwd=folder,
        ) as process,
    ):
        try:
            while True:
                try:
                    process.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        output = log.read_text(encoding="utf-8", errors="replace")
        raise subprocess.CalledProcessError(process.returncode, arguments, output)


def exit_with_parent() -> None:
    """In a child: end this process when its standard input closes, for its parent is dead then."""

    def watch() -> None:
        # Not sys.stdin: its lock, held at interpreter exit, is a fatal error.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
