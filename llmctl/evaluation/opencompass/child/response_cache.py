"""Cache of the model's responses, and the log of events for the parent process."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any


def cache_key(*parts: object) -> str:
    """Return a hash of everything that determines a response."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


class ResponseCache:
    """Responses by key, in a JSON-lines file that stays readable after a crash."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._responses: dict[str, Any] = {}
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._responses[entry["key"]] = entry["answer"]
                except (ValueError, KeyError):
                    continue  # an incomplete line of a killed run
        self._stream = file.open("a", encoding="utf-8")
        self._stream.write("\n")

    def get(self, key: str) -> Any:
        """Return a response, or None."""
        return self._responses.get(key)

    def put(self, key: str, response: Any) -> None:
        with self._lock:
            self._responses[key] = response
            line = json.dumps({"key": key, "answer": response}, ensure_ascii=False)
            self._stream.write(line + "\n")
            self._stream.flush()


class EventLog:
    """Events for the parent process, one JSON object per line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: Path | None = None

    def write_to(self, file: Path) -> None:
        self._file = file

    def emit(self, event: str, **fields: object) -> None:
        if self._file is None:
            return  # OpenCompass was started by hand with the configuration of a run
        with self._lock, self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")


event_log = EventLog()
