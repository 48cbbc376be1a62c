"""What a server tells of itself: figures once a minute, and a sample of its requests.

`record` is called when a request has been answered, from any thread; it takes microseconds and
never waits. What is written, per minute in which anything happened:

    serve/requests, serve/errors              how many ended, and how many of those failed
    serve/ttft_p50_s, serve/ttft_p95_s        seconds to the first token
    serve/tokens_per_s                        written tokens, over the whole minute
    serve/prompt_tokens, serve/completion_tokens
    serve/cached_share                        of the prompt's tokens, those known from before
    and what `gauges` says, such as serve/queue
"""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from llmctl.errors import LlmctlError
from llmctl.monitor.base import Tracker
from llmctl.types import RequestTrace

PERIOD_S: Final = 60.0


def _no_gauges() -> Mapping[str, float]:
    return {}


class ServingMonitor:
    """Adds requests up and writes them down; one per run of a server, closed before the run ends.

    Args:
        share: part of the requests that become traces, from 0 to 1. Which ones depends on their id
            alone.
        log_content: whether a trace may hold prompt and answer.
        model_id: the LoggedModel that answers, if it is one.
        gauges: read once per period: what is so at that moment, such as how many wait.
        period_s: seconds between two writings.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        share: float = 0.0,
        log_content: bool = False,
        model_id: str | None = None,
        gauges: Callable[[], Mapping[str, float]] = _no_gauges,
        period_s: float = PERIOD_S,
    ) -> None:
        self.log_content = log_content
        self._tracker = tracker
        self._share = share
        self._model_id = model_id
        self._gauges = gauges
        self._period_s = period_s
        self._lock = threading.Lock()
        self._ended: list[RequestTrace] = []
        self._began = self._written = time.monotonic()
        self._closing = threading.Event()
        if model_id is not None:
            tracker.use_model(model_id)
        self._thread = threading.Thread(target=self._run, name="llmctl-serving", daemon=True)
        self._thread.start()

    def samples(self, request_id: str) -> bool:
        """Whether this request becomes a trace, so that content is gathered for no other."""
        if self._share >= 1:
            return True
        digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self._share * 2**64

    def record(self, request: RequestTrace) -> None:
        """Count a request that has ended, and keep it as a trace if it is in the sample."""
        if self.samples(request.request_id):
            seen = replace(request, model_id=request.model_id or self._model_id)
            if not self.log_content:
                seen = replace(seen, prompt=None, answer=None)
            self._tracker.log_trace(seen)
        with self._lock:
            self._ended.append(replace(request, prompt=None, answer=None))

    def close(self) -> None:
        """Write the last, shorter period. Later requests are not counted."""
        if not self._closing.is_set():
            self._closing.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._period_s):
            self._write()
        self._write()

    def _write(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        now = time.monotonic()
        seconds, self._written = now - self._written, now
        gauges: Mapping[str, float] = {}
        with suppress(LlmctlError):  # the engine may be closing
            gauges = self._gauges()
        if ended or any(gauges.values()):
            step = math.ceil((now - self._began) / self._period_s)
            self._tracker.log_metrics({**_summary(ended, seconds), **gauges}, step=step)


def _summary(ended: Sequence[RequestTrace], seconds: float) -> dict[str, float]:
    prompt = sum(request.prompt_tokens for request in ended)
    completion = sum(request.completion_tokens for request in ended)
    figures: dict[str, float] = {
        "serve/requests": len(ended),
        "serve/errors": sum(bool(request.error) for request in ended),
        "serve/prompt_tokens": prompt,
        "serve/completion_tokens": completion,
        "serve/tokens_per_s": completion / seconds if seconds > 0 else 0.0,
    }
    if prompt:
        figures["serve/cached_share"] = sum(r.cached_tokens for r in ended) / prompt
    firsts = sorted(r.ttft_s for r in ended if r.ttft_s is not None)
    if firsts:
        figures["serve/ttft_p50_s"] = _percentile(firsts, 0.50)
        figures["serve/ttft_p95_s"] = _percentile(firsts, 0.95)
    return figures


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of a sorted, non-empty sequence."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
