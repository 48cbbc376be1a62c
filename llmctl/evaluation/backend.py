"""Who asks the questions? The interface that the native and the OpenCompass backend both obey."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmctl.engine.base import BaseEngine
from llmctl.types import BenchmarkPlan, ProgressCallback, ResultCallback, SampleResult


@dataclass(frozen=True, slots=True)
class ServerModel:
    """A server with OpenAI's API."""

    base_url: str
    """With its `/v1`, without a slash at the end."""
    model: str
    api_key: str = ""


ModelUnderTest = BaseEngine | ServerModel
"""Who sits the exam: an engine that is loaded, or a server. Neither is closed by a backend."""


class Backend(Protocol):
    """Asks the questions of several suites."""

    def run(
        self,
        plans: Sequence[BenchmarkPlan],
        candidate: ModelUnderTest,
        on_result: ResultCallback,
        progress: ProgressCallback,
    ) -> list[SampleResult]:
        """Ask every question of the plans and return a result for each of them, in order.

        Every result goes to `on_result` as soon as it is there (a batch at a time at the latest);
        that is where it is saved. A question that fails has a result with an `error`, and the rest
        goes on. What the plans hold is what is asked: questions that an earlier, interrupted run
        answered are not in them.

        Raises:
            ConfigError: the candidate cannot do what a plan asks (such as `ppl` on an endpoint
                without log-likelihoods); nothing has been asked then.
            EngineStoppedError: the engine or server is gone; what was answered has been told.
        """
