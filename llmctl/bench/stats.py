"""Metrics of recorded replies: percentiles, rates, medians and ratios."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from statistics import median
from typing import Literal

from llmctl.bench.load import LevelRun
from llmctl.bench.prompts import PREFIX_CACHE_SETS
from llmctl.bench.target import TimedReply
from llmctl.config.bench import BenchConfig, PromptSet
from llmctl.percentiles import percentile


@dataclass(frozen=True, slots=True)
class LevelMetrics:
    """Latency and throughput of a level. `None` is not measured."""

    ttft_p50_s: float | None = None
    """Time to first token: from sending the request to the first text. Last turn only."""
    ttft_p95_s: float | None = None
    first_turn_ttft_p50_s: float | None = None
    """Only for conversations with several turns."""
    itl_p50_s: float | None = None
    """Inter-token latency, see `inter_token_latencies`."""
    itl_p95_s: float | None = None
    itl_p99_s: float | None = None
    stream_tokens_per_s: float | None = None
    """Tokens after the first divided by the time after it; median over the replies."""
    sum_tokens_per_s: float | None = None
    """Tokens of all streams divided by the duration of the level."""
    prefill_tokens_per_s: float | None = None
    """Prompt tokens divided by time to first token, with one stream and an uncached prompt."""
    prompt_tokens: float | None = None
    """Of the last turn; median over the conversations."""
    cached_tokens: float | None = None
    """Prompt tokens that the server reports as cached."""
    peak_rss_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class LevelResult:
    """Result of one side at one concurrency level in one round."""

    side: int
    prompts: PromptSet
    concurrency: int
    round: int
    figures: LevelMetrics
    replies: int
    output_tokens: int
    wall_s: float
    short_replies: int
    """Replies with fewer tokens than requested."""
    counted_by: Literal["usage", "chunks"]
    """Source of the token counts."""
    errors: Mapping[str, int]


def summarize_level(
    run: LevelRun,
    config: BenchConfig,
    *,
    side: int,
    prompts: PromptSet,
    concurrency: int,
    round_: int,
) -> LevelResult:
    """Compute the metrics of one level."""
    replies = [reply for conversation in run.conversations for reply in conversation]
    tokens = sum(reply.tokens for reply in replies)
    return LevelResult(
        side=side,
        prompts=prompts,
        concurrency=concurrency,
        round=round_,
        figures=_level_metrics(run, replies, prompts, concurrency),
        replies=len(replies),
        output_tokens=tokens,
        wall_s=run.wall_s,
        short_replies=sum(reply.tokens < config.max_tokens for reply in replies),
        counted_by="chunks" if any(r.completion_tokens is None for r in replies) else "usage",
        errors=dict(Counter(str(error) for error in run.errors)),
    )


def _level_metrics(
    run: LevelRun, replies: Sequence[TimedReply], prompts: PromptSet, concurrency: int
) -> LevelMetrics:
    turns = max(map(len, run.conversations), default=0)
    last = [replies[-1] for replies in run.conversations if len(replies) == turns > 0]
    waits = [_ttft(reply) for reply in last]
    gaps = [gap for reply in replies for gap in inter_token_latencies(reply)]
    tokens = sum(reply.tokens for reply in replies)
    measures_prefill = concurrency == 1 and prompts not in PREFIX_CACHE_SETS
    return LevelMetrics(
        ttft_p50_s=_percentile(waits, 50),
        ttft_p95_s=_percentile(waits, 95),
        first_turn_ttft_p50_s=_percentile([_ttft(r[0]) for r in run.conversations if r], 50)
        if turns > 1
        else None,
        itl_p50_s=_percentile(gaps, 50),
        itl_p95_s=_percentile(gaps, 95),
        itl_p99_s=_percentile(gaps, 99),
        stream_tokens_per_s=_median([_decode_rate(reply) for reply in replies]),
        sum_tokens_per_s=tokens / run.wall_s if tokens and run.wall_s else None,
        prefill_tokens_per_s=_median([_prefill_rate(reply) for reply in last])
        if measures_prefill
        else None,
        prompt_tokens=_median([reply.prompt_tokens for reply in last]),
        cached_tokens=_median([reply.cached_tokens for reply in last]),
        peak_rss_bytes=run.peak_rss_bytes,
    )


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return percentile(values, percent) if values else None


def inter_token_latencies(reply: TimedReply) -> list[float]:
    """Return the seconds between the tokens of a reply, estimated from its chunks.

    Where the server reports more tokens than chunks, every gap between chunks is divided by the
    tokens per gap, and the time until the last token counts too. The mean is then exact; variation
    within a chunk is not visible.
    """
    times = list(reply.arrivals_s)
    if reply.tokens > len(times) and reply.ended_s > times[-1]:
        times.append(reply.ended_s)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    tokens_per_gap = max(1.0, (reply.tokens - 1) / len(gaps)) if gaps else 1.0
    return [gap / tokens_per_gap for gap in gaps]


def _ttft(reply: TimedReply) -> float:
    return reply.arrivals_s[0] - reply.sent_s


def _decode_rate(reply: TimedReply) -> float | None:
    decode_s = reply.ended_s - reply.arrivals_s[0]
    return (reply.tokens - 1) / decode_s if reply.tokens > 1 and decode_s > 0 else None


def _prefill_rate(reply: TimedReply) -> float | None:
    ttft_s = _ttft(reply)
    return reply.prompt_tokens / ttft_s if reply.prompt_tokens and ttft_s > 0 else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def median_metrics(rounds: Sequence[LevelMetrics]) -> LevelMetrics:
    """Return the median of every metric over the rounds that have it."""
    return _by_metric(lambda name: _median([getattr(metrics, name) for metrics in rounds]))


def metric_ratios(first: LevelMetrics, second: LevelMetrics) -> LevelMetrics:
    """Divide every metric that both sides have."""

    def divide(name: str) -> float | None:
        a, b = getattr(first, name), getattr(second, name)
        return a / b if a is not None and b else None

    return _by_metric(divide)


def _by_metric(value: Callable[[str], float | None]) -> LevelMetrics:
    return LevelMetrics(**{field.name: value(field.name) for field in fields(LevelMetrics)})
