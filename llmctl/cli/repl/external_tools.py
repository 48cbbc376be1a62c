"""What of other programs does a conversation use: an editor, and the clipboard?"""

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

_TOOLS: Final = (
    ("pbcopy",),
    ("wl-copy",),
    ("xclip", "-selection", "clipboard"),
    ("xsel", "--clipboard", "--input"),
    ("clip.exe",),
)
_TOOL_S: Final = 5.0
_OSC52_BYTES: Final = 74_994
"""Of text: what xterm takes in one sequence, 100,000 bytes, as base64 with its frame."""


def edit_text(text: str) -> str:
    """Let a person edit a text in `$VISUAL` or `$EDITOR`, and return it.

    Raises:
        ConfigError: there is no such editor, or it ended with an error.
    """
    default = "notepad" if sys.platform == "win32" else "vi"
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or default
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "question.md"
        file.write_text(text, encoding="utf-8")
        try:
            code = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode
            left = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the editor {editor!r} cannot be used: {error}",
                hint="set EDITOR to one that is here",
            ) from error
    if code:
        raise ConfigError(f"{editor!r} ended with exit code {code}; nothing was changed")
    return left


def copy_to_clipboard(text: str, terminal: TextIO) -> str:
    """Put a text on the clipboard, by every way there is; say by which.

    OSC 52 reaches the clipboard of whoever looks at the terminal, over SSH too; some terminals
    do not know it, so a program of this machine is asked as well.

    Raises:
        ConfigError: there is no way.
    """
    ways = []
    for command in _TOOLS:
        if shutil.which(command[0]) and _given(command, text):
            ways.append(command[0])
            break
    raw = text.encode()
    if terminal.isatty() and len(raw) <= _OSC52_BYTES:
        sequence = f"\x1b]52;c;{base64.b64encode(raw).decode()}\a"
        if os.environ.get("TMUX"):
            # tmux passes on what is wrapped, with its escapes doubled.
            doubled = sequence.replace("\x1b", "\x1b\x1b")
            terminal.write(f"\x1bPtmux;{doubled}\x1b\\")
        terminal.write(sequence)
        terminal.flush()
        ways.append("the terminal (OSC 52)")
    if not ways:
        raise ConfigError("there is no clipboard here", hint="/save FILE writes to a file")
    return " and ".join(ways)


def _given(command: tuple[str, ...], text: str) -> bool:
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TOOL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
