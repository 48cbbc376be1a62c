"""The small interface every backend obeys, so that vLLM or a remote endpoint can stand in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from llmctl.engine.stream import GenerationStream, fold
from llmctl.types import (
    EngineInfo,
    GenerationRequest,
    GenerationResult,
    Message,
    ModelSpec,
    ProgressCallback,
    Score,
    ScoreRequest,
    ignore_progress,
)


class BaseEngine(ABC):
    """A model that answers. Every method but `load` and `close` may be called from any thread."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @abstractmethod
    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        """Make the model ready. Blocks, for minutes when it must be fetched first.

        Raises:
            ModelNotFoundError: no source has it.
            ModelLoadError: its files cannot be used.
            OutOfMemoryError: it does not fit.
        """

    @abstractmethod
    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Check the request, put it in line and return the handle its chunks arrive on.

        Never waits for the model. The caller owns the handle and cancels it when it leaves.

        Raises:
            RequestError: the request is wrong in itself: too long, unknown adapter, bad parameter.
            EngineBusyError: too many wait already.
            EngineStoppedError: the engine is not loaded, closing or closed.
        """

    @abstractmethod
    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[Score, ...]]:
        """Return, for each request in order, one score per continuation. Blocks."""

    @abstractmethod
    def count_tokens(self, text: str | Sequence[Message]) -> int:
        """Count the tokens of raw text, or of a conversation as its prompt would be rendered."""

    @abstractmethod
    def info(self) -> EngineInfo:
        """Describe what is loaded. Raises `EngineStoppedError` before `load` and after `close`."""

    @abstractmethod
    def close(self) -> None:
        """End every request in flight with `EngineStoppedError` and free the model. Idempotent."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """How many submitted requests have not ended."""

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Answer in one piece: a fold over the stream."""
        with self.submit(request) as stream:
            return fold(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
