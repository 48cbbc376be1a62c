"""Python child processes that end with their parent, for work that a thread could not stop."""

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
    """Run Python with `arguments` and wait for its end. An exception in this call kills the child.

    Args:
        arguments: the command line after `python`.
        log: file that receives its standard output and standard error.
        environment: variables in addition to those of this process.
        tick: called a few times a second while it runs.
        python: the interpreter; by default that of this process.
        folder: its working directory; by default that of this process.

    Raises:
        CalledProcessError: it failed; `output` is the content of `log`.
    """
    with (
        log.open("wb") as output_file,
        # -P: a file in the working directory must not shadow a library.
        subprocess.Popen(
            [python, "-P", *arguments],
            stdin=subprocess.PIPE,  # closes when this process ends, see `exit_with_parent`
            stdout=output_file,
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
    """In a child: exit when standard input closes, which it does when the parent ends."""

    def watch() -> None:
        # Not sys.stdin: holding its lock at the exit of the interpreter is a fatal error.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
