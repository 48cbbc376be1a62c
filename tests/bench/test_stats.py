"""Metrics of recorded replies."""

from typing import Any

import pytest
from hypothesis import strategies as st

from llmctl.bench.load import LevelRun
from llmctl.bench.stats import (
    LevelMetrics,
    LevelResult,
    inter_token_latencies,
    median_metrics,
    metric_ratios,
    summarize_level,
)
from llmctl.config.bench import BenchConfig, PromptSet
from tests.bench.records import level_run, reply

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


def level(
    run: LevelRun, prompts: PromptSet = "short", concurrency: int = 1, **settings: Any
) -> LevelResult:
    plan = BenchConfig(**{"max_tokens": 4} | settings)
    return summarize_level(run, plan, side=0, prompts=prompts, concurrency=concurrency, round_=0)


def test_latencies_are_the_gaps_between_chunks_of_one_token() -> None:
    assert inter_token_latencies(reply(1.0, 1.5, 3.5, tokens=3)) == [0.5, 2.0]
    assert inter_token_latencies(reply(1.0, 1.5, 3.5)) == [0.5, 2.0]
    assert inter_token_latencies(reply(1.0, tokens=1)) == []


def test_rounds_tokens_of_a_chunk_share_its_gap() -> None:
    # Nine tokens after the first in three gaps.
    gaps = inter_token_latencies(reply(1.0, 2.0, 4.0, tokens=10, ended_s=7.0))
    assert gaps == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert sum(gaps) * 3 == pytest.approx(7.0 - 1.0)


def test_a_reply_that_ends_with_text_has_no_gap_after_it() -> None:
    assert inter_token_latencies(reply(1.0, 2.0, tokens=3)) == [0.5]


def test_more_chunks_than_tokens_do_not_change_the_gaps() -> None:
    assert inter_token_latencies(reply(1.0, 2.0, 3.0, tokens=2)) == [1.0, 1.0]


def test_the_metrics_of_one_stream() -> None:
    answered = reply(0.5, 0.6, 0.7, 0.8, tokens=4, prompt_tokens=100, cached_tokens=0)
    figures = level(level_run((answered,), wall_s=1.0)).figures
    assert figures.ttft_p50_s == figures.ttft_p95_s == 0.5
    assert figures.itl_p50_s == pytest.approx(0.1)
    assert figures.stream_tokens_per_s == pytest.approx(10)
    assert figures.sum_tokens_per_s == 4
    assert figures.prefill_tokens_per_s == 200
    assert (figures.prompt_tokens, figures.cached_tokens) == (100, 0)
    assert figures.first_turn_ttft_p50_s is None


def test_the_total_rate_is_over_all_streams_and_the_duration_of_the_level() -> None:
    run = level_run((reply(1.0, 2.0),), (reply(1.5, 2.5),), wall_s=2.5)
    assert level(run, concurrency=2).figures.sum_tokens_per_s == pytest.approx(4 / 2.5)


def test_the_prefill_rate_is_of_one_stream_with_uncached_prompts() -> None:
    run = level_run((reply(0.5, 0.6, prompt_tokens=100),))
    assert level(run, "long").figures.prefill_tokens_per_s == 200
    assert level(run, "long", concurrency=2).figures.prefill_tokens_per_s is None
    assert level(run, "shared").figures.prefill_tokens_per_s is None


def test_time_to_first_token_is_of_the_last_turn() -> None:
    first = reply(8.0, 9.0, prompt_tokens=1000, cached_tokens=0)
    second = reply(1.0, 2.0, prompt_tokens=1100, cached_tokens=1050)
    interrupted = (reply(20.0, 30.0),)
    figures = level(level_run((first, second), interrupted, errors=1), "multiturn").figures
    assert figures.ttft_p50_s == 1.0
    assert figures.first_turn_ttft_p50_s == 14.0
    assert (figures.prompt_tokens, figures.cached_tokens) == (1100, 1050)


def test_short_replies_and_errors_are_counted() -> None:
    run = level_run((reply(1.0, tokens=4),), (reply(1.0, tokens=3),), errors=2)
    measured = level(run)
    assert (measured.replies, measured.short_replies, measured.output_tokens) == (2, 1, 7)
    assert measured.errors == {"the request failed": 2}
    assert measured.counted_by == "usage"
    assert level(level_run((reply(1.0, 2.0),))).counted_by == "chunks"


def test_a_level_without_replies_has_no_metrics() -> None:
    assert level(level_run((), (), errors=2)).figures == LevelMetrics()


def test_the_median_of_each_metric_is_independent() -> None:
    rounds = [LevelMetrics(ttft_p50_s=value) for value in (3.0, 1.0, 2.0)]
    rounds.append(LevelMetrics(itl_p50_s=0.5))
    assert median_metrics(rounds) == LevelMetrics(ttft_p50_s=2.0, itl_p50_s=0.5)
    assert median_metrics([]) == LevelMetrics()


def test_a_ratio_needs_both_sides() -> None:
    first = LevelMetrics(ttft_p50_s=1.0, itl_p50_s=1.0, cached_tokens=0.0)
    second = LevelMetrics(ttft_p50_s=4.0, sum_tokens_per_s=5.0, cached_tokens=0.0)
    assert metric_ratios(first, second) == LevelMetrics(ttft_p50_s=0.25)
