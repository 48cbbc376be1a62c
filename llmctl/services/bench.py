"""The story of `llmctl bench`: reach every side, warm it up, measure them in turn."""

import asyncio
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from types import TracebackType
from typing import Self

from llmctl.bench.config import BenchConfig, BenchEngine, BenchServer
from llmctl.bench.host import MemorySampler, describe_host
from llmctl.bench.load import run_level
from llmctl.bench.prompts import PromptSet, prompt_batch
from llmctl.bench.report import BenchReport, Side
from llmctl.bench.stats import LevelResult, summarize_level
from llmctl.bench.target import BenchTarget, EngineTarget, ServerTarget
from llmctl.engine.openai.wire import api_url
from llmctl.engine.registry import create_engine
from llmctl.types import Progress, ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class _Measured:
    side: Side
    target: BenchTarget
    memory: MemorySampler | None


class BenchSession:
    """The sides of a benchmark, ready to be measured. It owns and closes what it opened."""

    def __init__(
        self,
        plan: BenchConfig,
        measured: Sequence[_Measured],
        runner: asyncio.Runner,
        resources: ExitStack,
    ) -> None:
        self._plan = plan
        self._measured = measured
        self._runner = runner
        self._resources = resources
        self._machine = describe_host()
        self._date = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def sides(self) -> tuple[Side, ...]:
        return tuple(measured.side for measured in self._measured)

    def levels(
        self, progress: ProgressCallback = ignore_progress
    ) -> Generator[LevelResult, None, None]:
        """Measure, and yield each level when it is over. The sides take turns within a level.

        Raises:
            LlmctlError: a warm-up failed. What fails later is counted.
        """
        for prompts in self._plan.prompts:
            for round_ in range(self._plan.rounds):
                on_done = self._counter(prompts, round_, progress)
                if round_ == 0 and self._plan.warmup:
                    self._warm_up(prompts)
                for concurrency in self._plan.concurrency:
                    for side in range(len(self._measured)):
                        yield self._level(prompts, round_, concurrency, side, on_done)

    def _counter(
        self, prompts: PromptSet, round_: int, progress: ProgressCallback
    ) -> Callable[[], None]:
        """Return what reports each conversation of a round when it is over."""
        plan = self._plan
        stage = f"{prompts}, round {round_ + 1} of {plan.rounds}" if plan.rounds > 1 else prompts
        total = sum(plan.concurrency) * plan.requests * len(self._measured)
        numbers = count(1)
        progress(Progress(stage, 0, total))
        return lambda: progress(Progress(stage, next(numbers), total))

    def _warm_up(self, prompts: PromptSet) -> None:
        plan = self._plan
        batch = prompt_batch(prompts, plan.warmup, f"{plan.seed}/warm-up")
        for measured in self._measured:
            run = self._runner.run(run_level(measured.target, batch, 1, plan))
            if run.errors:
                raise run.errors[0]

    def _level(
        self,
        prompts: PromptSet,
        round_: int,
        concurrency: int,
        side: int,
        on_done: Callable[[], None],
    ) -> LevelResult:
        plan, measured = self._plan, self._measured[side]
        # The same prompts for every side, and for nobody else.
        key = f"{plan.seed}/{round_}/{concurrency}"
        batch = prompt_batch(prompts, concurrency * plan.requests, key)
        run = self._runner.run(
            run_level(
                measured.target, batch, concurrency, plan, memory=measured.memory, on_done=on_done
            )
        )
        return summarize_level(
            run, plan, side=side, prompts=prompts, concurrency=concurrency, round_=round_
        )

    def report(self, levels: Sequence[LevelResult], *, complete: bool) -> BenchReport:
        """Gather what has been measured."""
        return BenchReport(
            self._date, self._machine, self._plan, self.sides, tuple(levels), complete
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()


def open_session(
    plan: BenchConfig,
    sides: Sequence[BenchServer | BenchEngine],
    progress: ProgressCallback = ignore_progress,
) -> BenchSession:
    """Reach the servers and load the model. The engine in this process is the first side.

    Raises:
        ConfigError: a URL or process id makes no sense.
        LlmctlError: a server does not answer; or as `BaseEngine.load`.
    """
    with ExitStack() as resources:
        runner = resources.enter_context(asyncio.Runner())
        # Servers first: a missing one must not cost the minutes that loading takes.
        reached = [
            _reach(side, runner, resources) for side in sides if isinstance(side, BenchServer)
        ]
        loaded = [
            _load(side, progress, resources) for side in sides if isinstance(side, BenchEngine)
        ]
        return BenchSession(plan, [*loaded, *reached], runner, resources.pop_all())


def _reach(endpoint: BenchServer, runner: asyncio.Runner, resources: ExitStack) -> _Measured:
    memory = None if endpoint.pid is None else MemorySampler(endpoint.pid)
    target = ServerTarget(endpoint)
    resources.callback(lambda: runner.run(target.close()))
    runner.run(target.open())
    return _Measured(Side(endpoint.label, api_url(endpoint.base_url), target.model), target, memory)


def _load(own: BenchEngine, progress: ProgressCallback, resources: ExitStack) -> _Measured:
    engine = resources.enter_context(create_engine(own.spec))
    engine.load(progress)
    info = engine.info()
    quant = "" if info.quant == "none" else f", {info.quant}"
    how = f", {info.dtype}{quant} on {info.device}"
    side = Side(own.label, "in process", info.model_id, how, own.spec)
    return _Measured(side, EngineTarget(engine), MemorySampler(os.getpid()))
