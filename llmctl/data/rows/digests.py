"""When are two examples the same, two prompts, two whole datasets?"""

import hashlib
import json
from collections.abc import Mapping

from llmctl.data.formats.turn_order import response_start
from llmctl.data.io.reader import read_examples
from llmctl.data.io.sources import DataSource, list_source_files
from llmctl.data.rows.row_errors import OnRowError
from llmctl.types import DatasetRef, Example, Message, ProgressCallback, ignore_progress


def content_key(example: Example) -> bytes:
    """Return 16 bytes that are equal for examples with equal content, wherever they stand."""
    return _digest(_content(example))


def prompt_key(example: Example) -> bytes:
    """Return 16 bytes that are equal for examples which ask the same.

    The prompt is everything to the last user's message, without regard to case and to how wide the
    blanks are; of plain text, all of it.
    """
    prompt = example.messages[: response_start(example.messages)]
    if not prompt:
        return _digest(_plain(example.text or ""))
    return _digest([(m.role, _plain(m.content)) for m in prompt])


def answer_key(example: Example) -> bytes:
    """Return 16 bytes that are equal for examples which answer their last question the same."""
    answer = example.messages[response_start(example.messages) :]
    calls = [(call.name, call.arguments) for message in answer for call in message.tool_calls]
    return _digest([[_plain(message.content) for message in answer], calls])


def dataset_ref(
    source: DataSource,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    on_row_error: OnRowError,
    progress: ProgressCallback = ignore_progress,
) -> DatasetRef:
    """Read a source once and say which data it is.

    The digest is of the whole examples in their order; in which format and file they stood makes
    no difference to it.

    Raises:
        ConfigError, DataError: as `read_examples`.
    """
    parts = list_source_files(source)
    digest, formats, rows = hashlib.sha256(), set[str](), 0
    found = read_examples(
        source, columns=columns, format=format, on_row_error=on_row_error, progress=progress
    )
    for example in found:
        digest.update(content_key(example))
        formats.add(example.format)
        rows += 1
    return DatasetRef(
        name="+".join(dict.fromkeys(part.stem for part in parts)),
        source=", ".join(part.location for part in parts),
        digest=digest.hexdigest(),
        rows=rows,
        format="+".join(sorted(formats)),
    )


def _content(example: Example) -> list[object]:
    tools = [[t.name, t.description, t.parameters, t.strict] for t in example.tools]
    turns = [_turn(message) for message in example.messages]
    rejected = [_turn(message) for message in example.rejected]
    return [turns, tools, rejected, example.masked, example.text]


def _turn(message: Message) -> list[object]:
    calls = [[call.name, call.arguments, call.id] for call in message.tool_calls]
    also = [message.reasoning, calls, message.tool_call_id, message.name]
    return [message.role, message.content, *also]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _digest(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
