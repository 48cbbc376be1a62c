"""Hand-made replies and reports, with times that are easy to reckon with."""

from llmctl.bench.load import LevelRun
from llmctl.bench.machine import Machine
from llmctl.bench.plan import BenchPlan
from llmctl.bench.report import Report, Side
from llmctl.bench.stats import Level, summarise
from llmctl.bench.target import Reply
from llmctl.errors import LlmctlError

MACHINE = Machine("a cpu", 2, 8 * 2**30, (), "a system", "3.11", 0.0, {})


def reply(
    *arrivals_s: float,
    tokens: int | None = None,
    ended_s: float | None = None,
    prompt_tokens: int | None = None,
    cached_tokens: int | None = None,
) -> Reply:
    """A reply to a request that was sent at second 0."""
    ended = arrivals_s[-1] if ended_s is None else ended_s
    return Reply(0.0, arrivals_s, ended, "text", prompt_tokens, tokens, cached_tokens)


def level_run(*conversations: tuple[Reply, ...], wall_s: float = 1.0, errors: int = 0) -> LevelRun:
    failed = tuple(LlmctlError("it broke") for _ in range(errors))
    return LevelRun(conversations, failed, wall_s, peak_rss_bytes=None)


def level(pace_s: float, *, side: int = 0, concurrency: int = 1, errors: int = 0) -> Level:
    """A level of short prompts in which four tokens came, one every `pace_s`."""
    replies = reply(*(pace_s * n for n in range(1, 5)), tokens=4, prompt_tokens=10)
    run = level_run((replies,), wall_s=4 * pace_s, errors=errors)
    plan = BenchPlan(max_tokens=4)
    return summarise(run, plan, side=side, prompts="short", concurrency=concurrency, round_=0)


def report(*levels: Level, sides: int = 2, complete: bool = True) -> Report:
    names = [Side(label, f"http://{label}/v1", "m") for label in "ab"]
    plan = BenchPlan(concurrency=(1, 2), max_tokens=4)
    return Report("2026-01-01T00:00:00", MACHINE, plan, tuple(names[:sides]), levels, complete)
