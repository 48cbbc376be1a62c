"""The interface of the model backends: `BaseEngine`, and one protocol for each further capability.

Every backend generates. What else it can do shows in the protocols that it implements; `require`
is the one place that rejects a backend without a capability.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol, Self, TypeVar, runtime_checkable

from llmctl.engine.stream import GenerationStream, collect_result
from llmctl.errors import UnsupportedError
from llmctl.types import (
    EngineInfo,
    EngineState,
    GenerationRequest,
    GenerationResult,
    Message,
    ProgressCallback,
    Score,
    ScoreRequest,
    ignore_progress,
)

T = TypeVar("T")


class BaseEngine(ABC):
    """A model that generates. All methods but `load` and `close` may be called from any thread."""

    @abstractmethod
    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        """Make the model ready. Blocks, for minutes if it must be downloaded first.

        Raises:
            ModelNotFoundError: no source has the model.
            ModelLoadError: its files cannot be used.
            OutOfMemoryError: it does not fit.
        """

    @abstractmethod
    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Check the request, queue it and return the handle on which its chunks arrive.

        Does not wait for the model. The caller owns the handle and cancels it when it stops
        reading.

        Raises:
            RequestError: the request is too long, names an unknown adapter or has a bad parameter.
            EngineBusyError: the queue is full.
            EngineStoppedError: the engine is not loaded, closing or closed.
        """

    @abstractmethod
    def info(self) -> EngineInfo:
        """Describe what is loaded. Raises `EngineStoppedError` before `load` and after `close`."""

    @abstractmethod
    def state(self) -> EngineState:
        """Return the load and liveness of the engine. Raises as `info`."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Number of submitted requests that have not ended, of every kind."""

    @abstractmethod
    def close(self) -> None:
        """End every request in flight with `EngineStoppedError` and free the model. Idempotent."""

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Submit the request and return the whole result. Blocks."""
        with self.submit(request) as stream:
            return collect_result(stream)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that a request's `adapter` may have."""
        return ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@runtime_checkable
class SupportsTokenize(Protocol):
    """Tokenises, detokenises and counts tokens."""

    def tokenize(self, text: str | Sequence[int], *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a raw prompt; ids are checked and returned.

        Args:
            add_special_tokens: add the tokens that the tokenizer adds by itself, such as a BOS.

        Raises:
            RequestError: an id is not in the vocabulary.
        """
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, control tokens included. Raises as `tokenize`."""
        ...

    def count_tokens(self, text: str | Sequence[Message]) -> int:
        """Count the tokens of raw text, or of a conversation rendered as a prompt."""
        ...

    def count_prompt(self, request: GenerationRequest) -> int:
        """Count the prompt tokens of a request, tools included.

        Raises:
            RequestError: the request cannot be rendered as a prompt.
        """
        ...


@runtime_checkable
class SupportsScore(Protocol):
    """Computes log-likelihoods of given texts."""

    def submit_scores(self, requests: Sequence[ScoreRequest]) -> Future[list[tuple[Score, ...]]]:
        """Check the requests and queue them; the result has one score per continuation of each.

        Does not wait for the model. Cancelling the `Future` ends the work at the next step.

        Raises:
            RequestError: a text is too long, or adds no token to its context.
            EngineStoppedError: the engine is not running.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[Score, ...]]:
        """Return, for each request in order, one score per continuation. Blocks."""
        return _result(self.submit_scores(requests))


@runtime_checkable
class SupportsEmbed(Protocol):
    """Computes embeddings of texts."""

    def submit_embeddings(
        self, texts: Sequence[str | Sequence[int]], adapter: str | None = None
    ) -> Future[list[tuple[float, ...]]]:
        """Queue texts; the result has a vector (hidden,) of unit length for each.

        Does not wait for the model; see `SupportsScore.submit_scores`. A vector is the mean of the
        last hidden states over the tokens. Models that were not trained for embeddings give only a
        rough measure of similarity.

        Raises:
            RequestError: a text is empty or too long.
            EngineStoppedError: the engine is not running.
        """
        ...

    def embed(
        self, texts: Sequence[str | Sequence[int]], adapter: str | None = None
    ) -> list[tuple[float, ...]]:
        """Return the embeddings of `submit_embeddings`. Blocks."""
        return _result(self.submit_embeddings(texts, adapter))


@runtime_checkable
class SupportsAdapters(Protocol):
    """Loads and unloads LoRA adapters while the engine runs."""

    def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter from a folder, for requests that name it. Blocks.

        Raises:
            ConfigError: the name is in use, or the folder holds no adapter for this model.
            EngineStoppedError: the engine is not running.
        """
        ...

    def begin_unload_adapter(self, name: str) -> Future[None]:
        """Remove the name at once, and the adapter when the last request that uses it has ended.

        Returns:
            Done when the adapter is removed. It cannot be cancelled.

        Raises:
            RequestError: no such adapter is loaded.
            EngineStoppedError: the engine is not running.
        """
        ...


@runtime_checkable
class SupportsModelList(Protocol):
    """Chooses among several models of a server."""

    models: tuple[str, ...]
    """Names of the models that the server lists."""


_ACTIONS: dict[type, str] = {
    SupportsTokenize: "tokenise text",
    SupportsScore: "score text",
    SupportsEmbed: "embed text",
    SupportsAdapters: "load or unload adapters",
}


def require(engine: BaseEngine, capability: type[T], param: str | None = None) -> T:
    """Return the engine as an implementation of one of the protocols of this module.

    Args:
        param: the field of the request that needs the capability.

    Raises:
        UnsupportedError: its backend lacks the capability.
    """
    if isinstance(engine, capability):
        return engine
    raise UnsupportedError(f"this backend cannot {_ACTIONS[capability]}", param=param)


def _result(pending: Future[T]) -> T:
    """Wait for the result; an interrupted wait cancels the work."""
    try:
        return pending.result()
    finally:
        pending.cancel()
