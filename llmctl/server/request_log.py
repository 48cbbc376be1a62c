"""How is a request written to the log? One line of JSON, without what was said."""

import json
import sys
from datetime import UTC, datetime
from typing import TextIO

from llmctl.server.request_record import RequestRecord

_SILENT = ("/health", "/ready", "/metrics")
"""Asked every few seconds by machines."""


class RequestLog:
    """Writes a line for every request; what was said only if it was put into the record."""

    def __init__(self, file: TextIO | None = None) -> None:
        """`file` is stderr by default, as it is when a line is written."""
        self._file = file

    def observe(self, record: RequestRecord) -> None:
        """Write the line; a log that cannot be written must not harm the request."""
        if record.path in _SILENT and record.status == 200:
            return
        line = json.dumps(_entry(record), ensure_ascii=False)
        try:
            print(line, file=self._file or sys.stderr, flush=True)
        except (OSError, ValueError):
            return


def _entry(record: RequestRecord) -> dict[str, object]:
    entry: dict[str, object] = {
        "time": datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "client": record.client,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "ms": round(record.duration_s * 1000),
    }
    if record.error is not None:
        entry["error"] = record.error
    if record.model is not None:
        entry |= {"model": record.model, "stream": record.stream}
    if record.first_token_s is not None:
        entry["first_token_ms"] = round(record.first_token_s * 1000)
    if record.usage is not None:
        entry |= {
            "prompt_tokens": record.usage.prompt_tokens,
            "cached_tokens": record.usage.cached_tokens,
            "completion_tokens": record.usage.completion_tokens,
        }
    if record.prompt is not None:
        entry["prompt"] = record.prompt
    if record.answer is not None:
        entry["answer"] = record.answer
    return entry
