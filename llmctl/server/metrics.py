"""What does the server tell Prometheus?"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from llmctl.engine.base import BaseEngine
from llmctl.errors import LlmctlError
from llmctl.server.request_record import RequestRecord

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counts requests for one server; a registry of its own, so that two can live in a process."""

    def __init__(self, engine: BaseEngine) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "llmctl_requests", "Requests answered.", ("route", "status"), registry=registry
        )
        self._errors = Counter(
            "llmctl_errors", "Requests that failed, by error code.", ("code",), registry=registry
        )
        self._durations = Histogram(
            "llmctl_request_duration_seconds",
            "From a request to the end of its reply.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_tokens = Histogram(
            "llmctl_time_to_first_token_seconds",
            "From a request to the first piece of its reply.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._gaps = Histogram(
            "llmctl_inter_token_seconds",
            "From a piece of a reply to the next.",
            buckets=_GAPS,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "llmctl_prompt_tokens", "Tokens of prompts.", registry=registry
        )
        self._cached_tokens = Counter(
            "llmctl_cached_tokens",
            "Tokens of prompts that were held.",
            registry=registry,
        )
        self._completion_tokens = Counter(
            "llmctl_completion_tokens", "Tokens of replies.", registry=registry
        )
        registry.register(_EngineGauges(engine))

    def observe(self, record: RequestRecord) -> None:
        """Count a request that is over."""
        status = "gone" if record.status is None else str(record.status)
        self._requests.labels(record.route, status).inc()
        self._durations.labels(record.route).observe(record.duration_s)
        if record.error is not None:
            self._errors.labels(record.error).inc()
        if record.first_token_s is not None:
            self._first_tokens.observe(record.first_token_s)
        for gap in record.gaps_s:
            self._gaps.observe(gap)
        if record.usage is not None:
            self._prompt_tokens.inc(record.usage.prompt_tokens)
            self._cached_tokens.inc(record.usage.cached_tokens)
            self._completion_tokens.inc(record.usage.completion_tokens)

    def exposition(self) -> bytes:
        """Write everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineGauges(Collector):
    """What the engine is doing when it is asked."""

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        try:
            state = self._engine.state()
        except LlmctlError:
            yield GaugeMetricFamily("llmctl_engine_up", "Whether the engine works.", 0)
            return
        for name, meaning, value in (
            ("llmctl_engine_up", "Whether the engine works.", state.alive),
            (
                "llmctl_engine_idle_seconds",
                "Since the last step, if there is work.",
                state.last_step_age_s,
            ),
            ("llmctl_batch_rows", "Replies being written.", state.running),
            ("llmctl_queue_length", "Replies that wait for a row.", state.waiting),
            ("llmctl_kv_used_tokens", "Tokens held in the KV cache.", state.kv_used_tokens),
            ("llmctl_kv_budget_tokens", "Tokens it may hold.", state.kv_budget_tokens),
        ):
            yield GaugeMetricFamily(name, meaning, value)
