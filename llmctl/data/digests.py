"""Digests of examples by content, prompt or answer, and the hold-out split that follows from them.

A digest depends on the content of an example alone, not on the file or format it was read from.
"""

import hashlib
import json
from collections.abc import Iterable

from llmctl.data.formats.turn_order import response_start
from llmctl.data.io.sources import DataSource, list_source_files
from llmctl.types import DatasetRef, Example, Message


def content_key(example: Example) -> bytes:
    """Return a 16-byte digest of the whole example."""
    return _digest(_content(example))


def prompt_key(example: Example) -> bytes:
    """Return a 16-byte digest of the prompt, ignoring case and the amount of white space.

    The prompt is everything up to the last user's message; plain text is a prompt as a whole.
    """
    prompt = example.messages[: response_start(example.messages)]
    if not prompt:
        return _digest(_normalised(example.text or ""))
    return _digest([(m.role, _normalised(m.content)) for m in prompt])


def answer_key(example: Example) -> bytes:
    """Return a 16-byte digest of the messages after the prompt, tool calls included."""
    answer = example.messages[response_start(example.messages) :]
    calls = [(call.name, call.arguments) for message in answer for call in message.tool_calls]
    return _digest([[_normalised(message.content) for message in answer], calls])


def is_held_out(key: bytes, fraction: float, seed: int = 0) -> bool:
    """Whether an example with this key belongs to the held-out share.

    The result depends on the arguments alone: rows added later move no other row. With
    `prompt_key` as the key, the same prompt is never on both sides.

    Args:
        fraction: share of all keys that is held out, from 0 to 1.
    """
    return uniform_hash(key, seed) < fraction


def uniform_hash(key: bytes, seed: int) -> float:
    """Map a key to a number in [0, 1), uniformly distributed over keys."""
    salt = seed.to_bytes(8, "big", signed=True)
    digest = hashlib.blake2b(key, digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "big") / 2**64


class DatasetDigest:
    """Computes the `DatasetRef` of a dataset from its examples, added in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._formats = set[str]()
        self.rows = 0

    def add(self, example: Example) -> None:
        """Add the next example."""
        self._digest.update(content_key(example))
        self._formats.add(example.format)
        self.rows += 1

    def ref(self, source: DataSource) -> DatasetRef:
        """Return the reference of the examples so far, read from `source`."""
        return dataset_ref(source, self._digest.hexdigest(), self.rows, self._formats)


def dataset_ref(source: DataSource, digest: str, rows: int, formats: Iterable[str]) -> DatasetRef:
    """Return the reference of rows that were read from or written to `source`."""
    files = list_source_files(source)
    return DatasetRef(
        name="+".join(dict.fromkeys(file.stem for file in files)),
        source=", ".join(file.location for file in files),
        digest=digest,
        rows=rows,
        format="+".join(sorted(formats)),
    )


def _content(example: Example) -> list[object]:
    tools = [[t.name, t.description, t.parameters, t.strict] for t in example.tools]
    messages = [_message(message) for message in example.messages]
    rejected = [_message(message) for message in example.rejected]
    return [messages, tools, rejected, example.masked, example.text]


def _message(message: Message) -> list[object]:
    calls = [[call.name, call.arguments, call.id] for call in message.tool_calls]
    return [
        message.role,
        message.content,
        message.reasoning,
        calls,
        message.tool_call_id,
        message.name,
    ]


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


def _digest(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
