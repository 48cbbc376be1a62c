"""Interface of the evaluation backends."""

from collections.abc import Sequence
from typing import Protocol

from llmctl.engine.base import BaseEngine
from llmctl.types import BenchmarkPlan, ProgressCallback, ResultCallback, SampleResult


class Backend(Protocol):
    """Evaluates a model on several benchmarks."""

    def run(
        self,
        plans: Sequence[BenchmarkPlan],
        engine: BaseEngine,
        on_result: ResultCallback,
        progress: ProgressCallback,
    ) -> list[SampleResult]:
        """Evaluate every sample of the plans; return their results in order.

        Args:
            plans: the samples to evaluate, without those that an earlier run answered.
            engine: the evaluated model, loaded. It stays open.
            on_result: receives each result as soon as it exists, at the latest after its batch. A
                sample that fails has a result with an `error`, and the others are evaluated.
            progress: receives the progress of steps without results.

        Raises:
            ConfigError: the model does not support a plan's mode, such as `ppl` on a server without
                log-likelihoods; no sample has been evaluated.
            EngineStoppedError: the engine or server stopped; results so far went to `on_result`.
        """
