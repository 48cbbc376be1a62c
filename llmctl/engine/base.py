"""The small interface every backend obeys, so that vLLM or a remote endpoint can stand in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from llmctl.engine.stream import GenerationStream, fold
from llmctl.errors import UnsupportedError
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

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that a request's `adapter` may have."""
        return ()

    def load_adapter(self, name: str, path: str) -> None:
        """Read a LoRA adapter from a folder, for requests that name it. Blocks.

        Raises:
            ConfigError: the name is taken, or the folder holds nothing that fits this model.
            UnsupportedError: this backend has no adapters by request.
        """
        raise UnsupportedError(f"this backend cannot load {name!r} from {path}", param="adapter")

    def unload_adapter(self, name: str) -> None:
        """Take the name away at once, and the adapter when the last request under it has ended.

        Blocks until then.

        Raises:
            RequestError: no such adapter is loaded.
            UnsupportedError: this backend has no adapters by request.
        """
        raise UnsupportedError(f"this backend cannot unload {name!r}", param="adapter")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
