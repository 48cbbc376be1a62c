"""What has been answered, so that nothing is asked twice, and how far is the run?"""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any


def cache_key(*parts: object) -> str:
    """Return what tells a question from every other: a hash of all that decides its answer."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


class ResponseCache:
    """Answers by key, in a file that a crash leaves readable up to its last line."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, Any] = {}
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._answers[entry["key"]] = entry["answer"]
                except (ValueError, KeyError):
                    continue  # the line that was being written when the run was killed
        self._stream = file.open("a", encoding="utf-8")
        self._stream.write("\n")

    def get(self, key: str) -> Any:
        """Return an answer, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: Any) -> None:
        with self._lock:
            self._answers[key] = answer
            line = json.dumps({"key": key, "answer": answer}, ensure_ascii=False)
            self._stream.write(line + "\n")
            self._stream.flush()


class EventLog:
    """Tells the parent process what happens, a line of JSON each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: Path | None = None

    def write_to(self, file: Path) -> None:
        self._file = file

    def tell(self, event: str, **facts: object) -> None:
        if self._file is None:
            return  # OpenCompass was started by hand with the configuration of a run
        with self._lock, self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, **facts}, ensure_ascii=False) + "\n")


event_log = EventLog()
