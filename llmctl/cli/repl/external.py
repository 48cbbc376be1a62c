"""External programs of a chat: the text editor and the clipboard."""

import base64
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, TextIO

from llmctl.errors import ConfigError

_CLIPBOARD_COMMANDS: Final = (
    ("pbcopy",),
    ("wl-copy",),
    ("xclip", "-selection", "clipboard"),
    ("xsel", "--clipboard", "--input"),
    ("clip.exe",),
)
_CLIPBOARD_TIMEOUT_S: Final = 5.0
_OSC52_MAX_BYTES: Final = 74_994
"""Longest text whose base64 form fits into one OSC 52 sequence of xterm (100,000 bytes)."""


def edit_text(text: str) -> str:
    """Let the user edit a text in `$VISUAL` or `$EDITOR`, and return it without outer blanks.

    Raises:
        ConfigError: the editor cannot be started, or it ended with an error.
    """
    default = "notepad" if sys.platform == "win32" else "vi"
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or default
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "message.md"
        file.write_text(text, encoding="utf-8")
        try:
            code = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode
            edited = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot run the editor {editor!r}: {error}",
                hint="set EDITOR to an installed editor",
            ) from error
    if code:
        raise ConfigError(f"{editor!r} ended with exit code {code}; nothing was changed")
    return edited


def copy_to_clipboard(text: str, terminal: TextIO) -> str:
    """Copy a text to the clipboard; return the names of the methods that were used.

    OSC 52 reaches the clipboard of the machine that displays the terminal, over SSH too. Not every
    terminal supports it, so a clipboard program of this machine is used as well.

    Raises:
        ConfigError: no method is available.
    """
    methods = []
    for command in _CLIPBOARD_COMMANDS:
        if shutil.which(command[0]) and _pipe_to(command, text):
            methods.append(command[0])
            break
    raw = text.encode()
    if terminal.isatty() and len(raw) <= _OSC52_MAX_BYTES:
        sequence = f"\x1b]52;c;{base64.b64encode(raw).decode()}\a"
        if os.environ.get("TMUX"):
            # tmux passes on a wrapped sequence, with its escape characters doubled.
            doubled = sequence.replace("\x1b", "\x1b\x1b")
            terminal.write(f"\x1bPtmux;{doubled}\x1b\\")
        terminal.write(sequence)
        terminal.flush()
        methods.append("the terminal (OSC 52)")
    if not methods:
        raise ConfigError("no clipboard is available", hint="/save FILE writes to a file")
    return " and ".join(methods)


def _pipe_to(command: tuple[str, ...], text: str) -> bool:
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_CLIPBOARD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
