"""Metrics of a server once a minute, and traces of a sample of its requests.

`record` is called after each request, from any thread; it takes microseconds and never waits.
Metrics of each minute with activity:

    serve/requests, serve/errors              ended requests, and failed ones among them
    serve/ttft_p50_s, serve/ttft_p95_s        seconds to the first token
    serve/tokens_per_s                        generated tokens, over the whole minute
    serve/prompt_tokens, serve/completion_tokens
    serve/cached_share                        share of the prompt tokens found in the cache
    and the values of `gauges`, such as serve/queue
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
from llmctl.percentiles import percentile
from llmctl.types import RequestTrace

PERIOD_S: Final = 60.0


class ServingMonitor:
    """Aggregates the requests of a server run. Close it before the run ends.

    Args:
        share: share of the requests recorded as traces, from 0 to 1. The selection depends only on
            their ids.
        log_content: whether traces contain prompt and answer.
        model_id: the LoggedModel that answers, if there is one.
        gauges: called once per period: current values, such as the length of the queue.
        period_s: seconds between two points of the metrics.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        share: float = 0.0,
        log_content: bool = False,
        model_id: str | None = None,
        gauges: Callable[[], Mapping[str, float]] = dict,
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
        self._started = self._written = time.monotonic()
        self._closing = threading.Event()
        if model_id is not None:
            tracker.use_model(model_id)
        self._thread = threading.Thread(target=self._run, name="llmctl-serving", daemon=True)
        self._thread.start()

    def samples(self, request_id: str) -> bool:
        """Whether this request is recorded as a trace; only then its content is needed."""
        if self._share >= 1:
            return True
        digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self._share * 2**64

    def record(self, request: RequestTrace) -> None:
        """Count an ended request, and record its trace if it is in the sample."""
        if self.samples(request.request_id):
            trace = replace(request, model_id=request.model_id or self._model_id)
            if not self.log_content:
                trace = replace(trace, prompt=None, answer=None)
            self._tracker.log_trace(trace)
        with self._lock:
            self._ended.append(replace(request, prompt=None, answer=None))

    def close(self) -> None:
        """Write the metrics of the last, shorter period. Later requests are not counted."""
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
            step = math.ceil((now - self._started) / self._period_s)
            self._tracker.log_metrics({**_summary(ended, seconds), **gauges}, step=step)


def _summary(ended: Sequence[RequestTrace], seconds: float) -> dict[str, float]:
    prompt = sum(request.prompt_tokens for request in ended)
    completion = sum(request.completion_tokens for request in ended)
    metrics: dict[str, float] = {
        "serve/requests": len(ended),
        "serve/errors": sum(bool(request.error) for request in ended),
        "serve/prompt_tokens": prompt,
        "serve/completion_tokens": completion,
        "serve/tokens_per_s": completion / seconds if seconds > 0 else 0.0,
    }
    if prompt:
        metrics["serve/cached_share"] = sum(r.cached_tokens for r in ended) / prompt
    waits = [r.ttft_s for r in ended if r.ttft_s is not None]
    if waits:
        metrics["serve/ttft_p50_s"] = percentile(waits, 50)
        metrics["serve/ttft_p95_s"] = percentile(waits, 95)
    return metrics
