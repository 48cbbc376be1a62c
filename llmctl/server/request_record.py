"""What is worth knowing of one request once it is over?"""

import time
from dataclasses import dataclass, field
from typing import Protocol

from llmctl.types import Usage


@dataclass(slots=True)
class RequestRecord:
    """Filled while a request is answered; times in seconds, from its first byte."""

    request_id: str
    method: str
    path: str
    """Of the URL, without its query."""
    client: str | None
    route: str = ""
    """The route's pattern, of which there are few; empty where none matched."""
    at: float = field(default_factory=time.time)
    """Unix time."""
    status: int | None = None
    """`None` if the client left before any."""
    error: str | None = None
    """Code or type of the error envelope, of streams also one that came in mid-stream."""
    model: str | None = None
    stream: bool = False
    duration_s: float = 0.0
    first_token_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    """From each piece of a reply to the next."""
    usage: Usage | None = None
    prompt: object = None
    """What was asked, and what was answered, if that may be kept."""
    answer: str | None = None
    _begun: float = field(default_factory=time.perf_counter)
    _last: float | None = None

    def piece(self) -> None:
        """Note that a piece of the reply has come."""
        now = time.perf_counter()
        if self._last is None:
            self.first_token_s = now - self._begun
        else:
            self.gaps_s.append(now - self._last)
        self._last = now

    def end(self) -> None:
        """Note that the request is over."""
        self.duration_s = time.perf_counter() - self._begun


class RequestObserver(Protocol):
    """Hears of every request once it is over. Called in the event loop: must not block."""

    def observe(self, record: RequestRecord) -> None: ...
