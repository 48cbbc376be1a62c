"""Service of `llmctl bench`: connect to every side, warm it up, and measure the sides in turn."""

import asyncio
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

from llmctl.bench.host import MemorySampler, describe_host
from llmctl.bench.load import run_level
from llmctl.bench.prompts import prompt_batch
from llmctl.bench.report import BenchReport, Side
from llmctl.bench.stats import LevelResult, summarize_level
from llmctl.bench.target import BenchTarget, EngineTarget, ServerTarget
from llmctl.config.bench import BenchConfig, BenchEngine, BenchServer, PromptSet
from llmctl.engine.registry import create_engine
from llmctl.types import Progress, ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class _OpenSide:
    side: Side
    target: BenchTarget
    memory: MemorySampler | None


class BenchSession:
    """The opened sides of a benchmark; `close` closes them."""

    def __init__(
        self,
        config: BenchConfig,
        open_sides: Sequence[_OpenSide],
        runner: asyncio.Runner,
        resources: ExitStack,
    ) -> None:
        self._config = config
        self._open_sides = open_sides
        self._runner = runner
        self._resources = resources
        self._host = describe_host()
        self._date = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def sides(self) -> tuple[Side, ...]:
        return tuple(open_side.side for open_side in self._open_sides)

    def levels(
        self, progress: ProgressCallback = ignore_progress
    ) -> Generator[LevelResult, None, None]:
        """Measure all levels, yielding each result. The sides take turns within a level.

        Raises:
            LlmctlError: a warm-up failed. Later errors are counted in the results.
        """
        for prompts in self._config.prompt_sets:
            for round_ in range(self._config.round_count):
                on_done = self._progress_counter(prompts, round_, progress)
                if round_ == 0 and self._config.warmup:
                    self._warm_up(prompts)
                for concurrency in self._config.concurrency:
                    for side in range(len(self._open_sides)):
                        yield self._level(prompts, round_, concurrency, side, on_done)

    def _progress_counter(
        self, prompts: PromptSet, round_: int, progress: ProgressCallback
    ) -> Callable[[], None]:
        """Return a callback that reports a finished conversation of a round."""
        config = self._config
        rounds = config.round_count
        stage = f"{prompts}, round {round_ + 1} of {rounds}" if rounds > 1 else prompts
        total = sum(config.concurrency) * config.requests * len(self._open_sides)
        numbers = count(1)
        progress(Progress(stage, 0, total))
        return lambda: progress(Progress(stage, next(numbers), total))

    def _warm_up(self, prompts: PromptSet) -> None:
        config = self._config
        batch = prompt_batch(prompts, config.warmup, f"{config.seed}/warm-up")
        for open_side in self._open_sides:
            run = self._runner.run(run_level(open_side.target, batch, 1, config))
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
        config, open_side = self._config, self._open_sides[side]
        # The same prompts for every side, different for every level.
        key = f"{config.seed}/{round_}/{concurrency}"
        batch = prompt_batch(prompts, concurrency * config.requests, key)
        run = self._runner.run(
            run_level(
                open_side.target,
                batch,
                concurrency,
                config,
                memory=open_side.memory,
                on_done=on_done,
            )
        )
        return summarize_level(
            run, config, side=side, prompts=prompts, concurrency=concurrency, round_=round_
        )

    def report(self, levels: Sequence[LevelResult], *, complete: bool) -> BenchReport:
        """Return the report of the levels measured so far."""
        return BenchReport(
            self._date, self._host, self._config, self.sides, tuple(levels), complete
        )

    def close(self) -> None:
        self._resources.close()


def open_session(
    config: BenchConfig,
    sides: Sequence[BenchServer | BenchEngine],
    progress: ProgressCallback = ignore_progress,
) -> BenchSession:
    """Connect to the servers and load the model. An engine in this process is the first side.

    Args:
        config: of the run.
        sides: one or two.
        progress: of loading the model.

    Raises:
        ConfigError: a URL or process id is invalid.
        LlmctlError: a server does not answer; or as `BaseEngine.load`.
    """
    with ExitStack() as resources:
        runner = resources.enter_context(asyncio.Runner())
        # Servers first: if one is missing, the user learns it before minutes of loading.
        servers = [
            _connect(side, runner, resources) for side in sides if isinstance(side, BenchServer)
        ]
        engines = [
            _load(side, progress, resources) for side in sides if isinstance(side, BenchEngine)
        ]
        return BenchSession(config, [*engines, *servers], runner, resources.pop_all())


def _connect(server: BenchServer, runner: asyncio.Runner, resources: ExitStack) -> _OpenSide:
    memory = None if server.pid is None else MemorySampler(server.pid)
    target = ServerTarget(server.endpoint)
    resources.callback(lambda: runner.run(target.close()))
    runner.run(target.open())
    return _OpenSide(Side(server.label, target.url, target.model), target, memory)


def _load(target: BenchEngine, progress: ProgressCallback, resources: ExitStack) -> _OpenSide:
    engine = resources.enter_context(create_engine(target.spec))
    engine.load(progress)
    info = engine.info()
    quant = "" if info.quant == "none" else f", {info.quant}"
    details = f", {info.dtype}{quant} on {info.device}"
    side = Side(target.label, "in process", info.model_id, details, target.spec)
    return _OpenSide(side, EngineTarget(engine), MemorySampler(os.getpid()))
