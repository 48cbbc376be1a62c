"""Record of one HTTP request, and its line of JSON in the log."""

import json
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from llmctl.types import Usage

_PROBE_PATHS = ("/health", "/ready", "/metrics")
"""Polled every few seconds by monitoring; logged only when they fail."""


@dataclass(slots=True)
class RequestRecord:
    """Facts of one request, filled while it is answered. Durations in seconds, from its start."""

    request_id: str
    method: str
    path: str
    """Path of the URL, without the query."""
    client: str | None
    route: str = ""
    """Pattern of the route (few values, fit for a metric label); empty where none matched."""
    started: float = field(default_factory=time.time)
    """Unix time in seconds."""
    status: int | None = None
    """HTTP status; `None` if the client disconnected before one was sent."""
    error: str | None = None
    """Code, or else type, of the error envelope; also of an error within a stream."""
    model: str | None = None
    stream: bool = False
    duration_s: float = 0.0
    first_token_s: float | None = None
    inter_token_s: list[float] = field(default_factory=list)
    """Time from each chunk of the reply to the next."""
    usage: Usage | None = None
    prompt: object = None
    """Prompt and answer, only where `--log-content` allows it."""
    answer: str | None = None
    _start: float = field(default_factory=time.perf_counter)
    _last_chunk: float | None = None

    def record_chunk(self) -> None:
        """Note the time of a chunk of the reply."""
        now = time.perf_counter()
        if self._last_chunk is None:
            self.first_token_s = now - self._start
        else:
            self.inter_token_s.append(now - self._last_chunk)
        self._last_chunk = now

    def finish(self) -> None:
        """Note the duration of the request."""
        self.duration_s = time.perf_counter() - self._start


class RequestObserver(Protocol):
    """Receives the record of every request after its end, in the event loop: it must not block."""

    def observe(self, record: RequestRecord) -> None: ...


class RequestLog:
    """Writes a line of JSON for every request; prompt and answer only if the record holds them."""

    def observe(self, record: RequestRecord) -> None:
        """Write the line. A log that cannot be written does not fail the request."""
        if record.path in _PROBE_PATHS and record.status == 200:
            return
        line = json.dumps(_entry(record), ensure_ascii=False)
        try:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            return


_MAX_LENGTH = 200


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}\u2026"


def _entry(record: RequestRecord) -> dict[str, object]:
    entry: dict[str, object] = {
        "time": datetime.fromtimestamp(record.started, UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "client": record.client,
        "method": record.method,
        "path": _shortened(record.path),
        "status": record.status,
        "ms": round(record.duration_s * 1000),
    }
    if record.error is not None:
        entry["error"] = record.error
    if record.model is not None:
        entry |= {"model": _shortened(record.model), "stream": record.stream}
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
