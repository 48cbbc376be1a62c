"""Raw rows to clean, and settings of the rules."""

from typing import Any

from llmctl.data.cleaning.pipeline.row_cleaner import CleanedRow, RowCleaner
from llmctl.data.cleaning.settings import CleanSettings
from llmctl.data.io.reader import RawRow
from llmctl.types import SourceLocation


def row(line: int = 1, **value: Any) -> RawRow:
    return RawRow(SourceLocation("rows.jsonl", line), b"{}", value)


def chat(question: str, answer: str, line: int = 1, **more: Any) -> RawRow:
    """A question and its answer in the format of OpenAI."""
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return row(line, messages=messages, **more)


def settings(**rules: Any) -> CleanSettings:
    """The default settings, except for these rules. A rule takes its settings or its action."""
    values = {name: {"action": v} if isinstance(v, str) else v for name, v in rules.items()}
    return CleanSettings.model_validate(values)


def clean(of: RawRow, **rules: Any) -> CleanedRow:
    """Clean a readable row."""
    cleaned = RowCleaner(settings(**rules)).clean(of)
    assert isinstance(cleaned, CleanedRow), cleaned
    return cleaned
