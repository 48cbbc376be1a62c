"""Prometheus metrics of the server and its engine."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from llmctl.engine.base import BaseEngine
from llmctl.errors import LlmctlError
from llmctl.server.request_log import RequestRecord

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_DURATION_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_INTER_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Metrics of one server, in a registry of its own: several servers can share a process."""

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
            "Time from a request to the end of its reply.",
            ("route",),
            buckets=_DURATION_BUCKETS_S,
            registry=registry,
        )
        self._first_tokens = Histogram(
            "llmctl_time_to_first_token_seconds",
            "Time from a request to the first chunk of its reply.",
            buckets=_DURATION_BUCKETS_S,
            registry=registry,
        )
        self._inter_token = Histogram(
            "llmctl_inter_token_seconds",
            "Time from one chunk of a reply to the next.",
            buckets=_INTER_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self._prompt_tokens = Counter("llmctl_prompt_tokens", "Prompt tokens.", registry=registry)
        self._cached_tokens = Counter(
            "llmctl_cached_tokens",
            "Prompt tokens found in the prefix cache.",
            registry=registry,
        )
        self._completion_tokens = Counter(
            "llmctl_completion_tokens", "Generated tokens.", registry=registry
        )
        registry.register(_EngineGauges(engine))

    def observe(self, record: RequestRecord) -> None:
        """Count a finished request."""
        status = "gone" if record.status is None else str(record.status)
        self._requests.labels(record.route, status).inc()
        self._durations.labels(record.route).observe(record.duration_s)
        if record.error is not None:
            self._errors.labels(record.error).inc()
        if record.first_token_s is not None:
            self._first_tokens.observe(record.first_token_s)
        for gap in record.inter_token_s:
            self._inter_token.observe(gap)
        if record.usage is not None:
            self._prompt_tokens.inc(record.usage.prompt_tokens)
            self._cached_tokens.inc(record.usage.cached_tokens)
            self._completion_tokens.inc(record.usage.completion_tokens)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineGauges(Collector):
    """Reads the state of the engine at every scrape."""

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        try:
            state = self._engine.state()
        except LlmctlError:
            yield GaugeMetricFamily("llmctl_engine_up", "1 while the engine works.", 0)
            return
        for name, meaning, value in (
            ("llmctl_engine_up", "1 while the engine works.", state.alive),
            (
                "llmctl_engine_last_step_age_seconds",
                "Time since the last step of an engine that has work; 0 without work.",
                state.last_step_age_s,
            ),
            (
                "llmctl_engine_idle_seconds",
                "Former name of llmctl_engine_last_step_age_seconds.",
                state.last_step_age_s,
            ),
            ("llmctl_batch_rows", "Sequences in the running batch.", state.running),
            ("llmctl_queue_length", "Sequences waiting for a row.", state.waiting),
            ("llmctl_kv_used_tokens", "Tokens held in the KV cache.", state.kv_used_tokens),
            ("llmctl_kv_budget_tokens", "Capacity of the KV cache.", state.kv_budget_tokens),
        ):
            yield GaugeMetricFamily(name, meaning, value)
