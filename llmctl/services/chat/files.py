"""Files of a chat: attachments, saved conversations, and export as training data."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llmctl.atomic_files import write_atomically
from llmctl.data.io.writer import RowWriter
from llmctl.did_you_mean import did_you_mean
from llmctl.errors import ConfigError, LlmctlError
from llmctl.services.chat.conversation import (
    Conversation,
    conversation_from_dict,
    conversation_to_dict,
)

FORMAT: Final = "llmctl-chat"
MAX_ATTACHMENT_BYTES: Final = 8 * 2**20
"""Largest attachment; more does not fit into any context."""
_LANGUAGES: Final = {".py": "python", ".js": "javascript", ".ts": "typescript", ".sh": "bash"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file that is sent with a message."""

    name: str
    text: str

    def to_markdown(self) -> str:
        """Return the file as a fenced block below its name."""
        fence = "```"
        while fence in self.text:
            fence += "`"
        suffix = Path(self.name).suffix
        language = _LANGUAGES.get(suffix, suffix.removeprefix("."))
        return f"{self.name}:\n{fence}{language}\n{self.text.rstrip()}\n{fence}"


def with_attachments(text: str, attached: list[Attachment]) -> str:
    """Return a message with its attachments in front."""
    return "\n\n".join([*(file.to_markdown() for file in attached), text])


def read_attachment(name: str) -> Attachment:
    """Read a text file to attach.

    Raises:
        ConfigError: the file is missing, not UTF-8 text, empty, or larger than
            `MAX_ATTACHMENT_BYTES`.
    """
    path = Path(name).expanduser()
    try:
        size = path.stat().st_size
        if size > MAX_ATTACHMENT_BYTES:
            raise ConfigError(
                f"{name} has {size / 1e6:,.0f} MB; "
                f"at most {MAX_ATTACHMENT_BYTES / 1e6:.0f} MB can be read",
                hint="attach the relevant part",
            )
        raw = path.read_bytes()
    except OSError as error:
        raise _unreadable(name, path, error) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(f"{name} is not UTF-8 text", hint="convert it to plain text first")
    if not text.strip():
        raise ConfigError(f"{name} is empty")
    return Attachment(path.name, text)


def save_conversation(conversation: Conversation, name: str) -> Path:
    """Write a conversation to a JSON file atomically, readable by its owner only.

    Raises:
        ConfigError: the file cannot be written, or exists and is not a saved conversation.
    """
    path = Path(name).expanduser()
    if path.exists() and not _is_saved(path):
        raise ConfigError(
            f"{name} exists and is not a saved conversation", hint="choose another name"
        )
    value: dict[str, Any] = {"format": FORMAT} | conversation_to_dict(conversation)
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    try:
        write_atomically(path, text, mode=0o600)
    except OSError as error:
        raise ConfigError(f"cannot write {name}: {error.strerror}") from error
    return path


def _is_saved(path: Path) -> bool:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def load_conversation(name: str) -> Conversation:
    """Read a file of `save_conversation`, or the first row of a file of OpenAI messages.

    The conversation gets a new id: continuing it does not change the stored one.

    Raises:
        ConfigError: the file is missing or does not hold a conversation.
    """
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(name, path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not a conversation: it is not UTF-8 text") from error
    lines = text.strip().split("\n")
    try:
        value = json.loads(lines[0] if path.suffix == ".jsonl" else text)
        return replace(conversation_from_dict(value), id=Conversation().id)
    except (ValueError, LlmctlError) as error:
        raise ConfigError(f"{name} is not a conversation: {error}") from error


def export_conversation(conversation: Conversation, name: str) -> int:
    """Add a conversation to a JSONL file of training data; return its row number, from 1.

    The row has OpenAI's `messages`. Incomplete replies get the weight 0, which excludes them from
    the training loss. A conversation that was exported before replaces its earlier row.

    Raises:
        ConfigError: there is no reply yet, or the file is not a JSONL file of objects.
    """
    row = to_training_row(conversation)
    path = Path(name).expanduser()
    if path.suffix != ".jsonl":
        raise ConfigError(f"{name} is not a .jsonl file", hint="such as /export good.jsonl")
    rows = list(_rows(path, name)) if path.exists() else []
    at = next((i for i, old in enumerate(rows) if old.get("id") == conversation.id), len(rows))
    rows[at : at + 1] = [row]
    with RowWriter(path, overwrite=True) as writer:
        for each in rows:
            writer.write(each)
    return at + 1


def to_training_row(conversation: Conversation) -> dict[str, Any]:
    """Return the conversation as a training row. Raises `ConfigError` without a reply."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for prompt, reply in zip(conversation.turns[::2], conversation.turns[1::2], strict=False):
        if not reply.message.content.strip():
            continue  # only reasoning
        messages.append({"role": "user", "content": prompt.message.content})
        answer: dict[str, Any] = {"role": "assistant", "content": reply.message.content}
        if reply.message.reasoning:
            answer["reasoning_content"] = reply.message.reasoning
        if reply.state != "whole":
            answer["weight"] = 0
        messages.append(answer)
    if all(message["role"] == "system" for message in messages):
        raise ConfigError("there is no reply to train on yet")
    return {"messages": messages, "id": conversation.id}


def code_blocks(text: str) -> list[str]:
    """Return the contents of the fenced code blocks of a Markdown text."""
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
            raise ConfigError(f"{name}:{number} is not a JSON object", hint="choose another file")
        yield row


def _unreadable(name: str, path: Path, error: OSError) -> ConfigError:
    folder = path.parent
    names = (p.name for p in folder.iterdir()) if folder.is_dir() else ()
    near = None if path.exists() else did_you_mean(path.name, names)
    hint = f"did you mean {path.with_name(near)}?" if near else ""
    return ConfigError(f"cannot read {name}: {error.strerror}", hint=hint)
