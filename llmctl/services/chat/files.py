"""Which files does a conversation come from, go to, and carry with it?"""

import difflib
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llmctl.data.io.writer import RowWriter
from llmctl.errors import ConfigError, LlmctlError
from llmctl.services.chat.conversation import (
    Conversation,
    conversation_from_dict,
    conversation_to_dict,
)

FORMAT: Final = "llmctl-chat"
MAX_ATTACHMENT_BYTES: Final = 8 * 2**20
"""Of a file that is attached: more is in no model's context."""
_LANGUAGES: Final = {".py": "python", ".js": "javascript", ".ts": "typescript", ".sh": "bash"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a question."""

    name: str
    text: str

    def block(self) -> str:
        """Write it as the model is given it: fenced, under its name."""
        fence = "```"
        while fence in self.text:
            fence += "`"
        suffix = Path(self.name).suffix
        language = _LANGUAGES.get(suffix, suffix.removeprefix("."))
        return f"{self.name}:\n{fence}{language}\n{self.text.rstrip()}\n{fence}"


def with_attachments(text: str, attached: list[Attachment]) -> str:
    """Return a question with its files before it."""
    return "\n\n".join([*(file.block() for file in attached), text])


def read_attachment(name: str) -> Attachment:
    """Read a file to go with a question.

    Raises:
        ConfigError: it is not there, no text, empty, or larger than any context.
    """
    path = Path(name).expanduser()
    try:
        size = path.stat().st_size
        if size > MAX_ATTACHMENT_BYTES:
            raise ConfigError(
                f"{name} has {size / 1e6:,.0f} MB; "
                f"at most {MAX_ATTACHMENT_BYTES / 1e6:.0f} MB can be read",
                hint="cut the part out that matters",
            )
        raw = path.read_bytes()
    except OSError as error:
        raise _unreadable(name, path, error) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(f"{name} is no text in UTF-8", hint="convert it to plain text first")
    if not text.strip():
        raise ConfigError(f"{name} is empty")
    return Attachment(path.name, text)


def save_conversation(conversation: Conversation, name: str) -> Path:
    """Write a conversation to a JSON file, whole or not at all, that its owner alone can read.

    Raises:
        ConfigError: it cannot be written, or something else is there already.
    """
    path = Path(name).expanduser()
    if path.exists() and not _is_saved(path):
        raise ConfigError(f"{name} is there already, and no conversation", hint="take another name")
    plain: dict[str, Any] = {"format": FORMAT} | conversation_to_dict(conversation)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(plain, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {name}: {error.strerror}") from error
    return path


def _is_saved(path: Path) -> bool:
    try:
        plain = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and plain.get("format") == FORMAT


def load_conversation(name: str) -> Conversation:
    """Read a conversation that `save` wrote, or the first row of a file of messages.

    It is a new one: what is said from here on does not change the stored one it was saved from.

    Raises:
        ConfigError: there is no such file, or no conversation in it; the message says why.
    """
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(name, path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is no conversation: it is no text in UTF-8") from error
    lines = text.strip().split("\n")
    try:
        plain = json.loads(lines[0] if path.suffix == ".jsonl" else text)
        return replace(conversation_from_dict(plain), id=Conversation().id)
    except (ValueError, LlmctlError) as error:
        raise ConfigError(f"{name} is no conversation: {error}") from error


def export_conversation(conversation: Conversation, name: str) -> int:
    """Add a conversation to a file of training data; return the number of its row, from 1.

    The row has OpenAI's `messages`. Replies that did not end by themselves get the weight 0, so
    that none learns to break off. A conversation that the file has already takes its old place.

    Raises:
        ConfigError: there is no reply yet, or the file is of another kind or holds other rows.
    """
    row = to_training_row(conversation)
    path = Path(name).expanduser()
    if path.suffix != ".jsonl":
        raise ConfigError(f"{name} is no .jsonl file", hint="such as /export good.jsonl")
    rows = list(_rows(path, name)) if path.exists() else []
    at = next((i for i, old in enumerate(rows) if old.get("id") == conversation.id), len(rows))
    rows[at : at + 1] = [row]
    with RowWriter(path, overwrite=True) as writer:
        for each in rows:
            writer.write(each)
    return at + 1


def to_training_row(conversation: Conversation) -> dict[str, Any]:
    """Return a conversation as a row of training data. Raises `ConfigError` without a reply."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for question, reply in zip(conversation.turns[::2], conversation.turns[1::2], strict=False):
        if not reply.message.content.strip():
            continue  # nothing but reasoning came
        messages.append({"role": "user", "content": question.message.content})
        said: dict[str, Any] = {"role": "assistant", "content": reply.message.content}
        if reply.message.reasoning:
            said["reasoning_content"] = reply.message.reasoning
        if reply.state != "whole":
            said["weight"] = 0
        messages.append(said)
    if all(message["role"] == "system" for message in messages):
        raise ConfigError("there is no reply yet that could be learnt")
    return {"messages": messages, "id": conversation.id}


def code_blocks(text: str) -> list[str]:
    """Return what stands between fences in a Markdown text."""
    found = re.findall(r"^(`{3,}|~{3,})[^\n]*\n(.*?)^\1", text, re.DOTALL | re.MULTILINE)
    return [code.rstrip("\n") for _, code in found]


def _rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {name}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{name}:{number} is no row of data", hint="choose another file")
        yield row


def _unreadable(name: str, path: Path, error: OSError) -> ConfigError:
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {path.with_name(near[0])}?" if near and not path.exists() else ""
    return ConfigError(f"cannot read {name}: {error.strerror}", hint=hint)
