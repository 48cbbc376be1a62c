"""Replies, levels and reports with simple times."""

from llmctl.bench.host import HostInfo
from llmctl.bench.load import LevelRun
from llmctl.bench.report import BenchReport, Side
from llmctl.bench.stats import LevelResult, summarize_level
from llmctl.bench.target import TimedReply
from llmctl.config.bench import BenchConfig
from llmctl.errors import LlmctlError

HOST = HostInfo("a cpu", 2, 8 * 2**30, (), "a system", "3.11", 0.0, {})


def reply(
    *arrivals_s: float,
    tokens: int | None = None,
    ended_s: float | None = None,
    prompt_tokens: int | None = None,
    cached_tokens: int | None = None,
) -> TimedReply:
    """Return a reply to a request that was sent at second 0."""
    ended = arrivals_s[-1] if ended_s is None else ended_s
    return TimedReply(0.0, arrivals_s, ended, "text", prompt_tokens, tokens, cached_tokens)


def level_run(
    *conversations: tuple[TimedReply, ...], wall_s: float = 1.0, errors: int = 0
) -> LevelRun:
    failed = tuple(LlmctlError("the request failed") for _ in range(errors))
    return LevelRun(conversations, failed, wall_s, peak_rss_bytes=None)


def level(
    interval_s: float, *, side: int = 0, concurrency: int = 1, errors: int = 0
) -> LevelResult:
    """Return a level of short prompts with four tokens, one every `interval_s`."""
    replies = reply(*(interval_s * n for n in range(1, 5)), tokens=4, prompt_tokens=10)
    run = level_run((replies,), wall_s=4 * interval_s, errors=errors)
    config = BenchConfig(max_tokens=4)
    return summarize_level(
        run, config, side=side, prompts="short", concurrency=concurrency, round_=0
    )


def report(*levels: LevelResult, sides: int = 2, complete: bool = True) -> BenchReport:
    all_sides = [Side(label, f"http://{label}/v1", "m") for label in "ab"]
    config = BenchConfig(concurrency=(1, 2), max_tokens=4)
    return BenchReport(
        "2026-01-01T00:00:00", HOST, config, tuple(all_sides[:sides]), levels, complete
    )
