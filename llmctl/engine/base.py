"""The small interface every backend obeys, so that vLLM or a remote endpoint can stand in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from llmctl.engine.stream import GenerationStream, collect_result
from llmctl.errors import UnsupportedError
from llmctl.types import (
    EngineInfo,
    EngineState,
    GenerationRequest,
    GenerationResult,
    Message,
    ModelSpec,
    ProgressCallback,
    Score,
    ScoreRequest,
    ignore_progress,
)

T = TypeVar("T")


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

    def submit_scores(
        self,
        requests: Sequence[ScoreRequest],  # noqa: ARG002  for those who can
    ) -> Future[list[tuple[Score, ...]]]:
        """Check the requests and put them in line, to find a score for each continuation of each.

        Never waits for the model. Who cancels the `Future` ends the work at its next step.

        Raises:
            RequestError: a text is too long, or adds nothing to its context.
            UnsupportedError: this backend scores nothing.
        """
        raise UnsupportedError("this backend scores no text")

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[Score, ...]]:
        """Return, for each request in order, one score per continuation. Blocks."""
        return _result(self.submit_scores(requests))

    def submit_embeddings(
        self,
        texts: Sequence[str | Sequence[int]],  # noqa: ARG002  for those who can
        adapter: str | None = None,  # noqa: ARG002
    ) -> Future[list[tuple[float, ...]]]:
        """Put texts in line, to find a vector (hidden,) of unit length for each.

        Never waits for the model; see `submit_scores`. A vector is the mean over the tokens of
        what the model's head would see of each: of use for a model that was trained for it, and a
        rough likeness of meaning for any other.

        Raises:
            RequestError: a text is empty or too long.
            UnsupportedError: this backend embeds nothing.
        """
        raise UnsupportedError("this backend embeds no text", param="input")

    def embed(
        self, texts: Sequence[str | Sequence[int]], adapter: str | None = None
    ) -> list[tuple[float, ...]]:
        """Return what `submit_texts` finds. Blocks."""
        return _result(self.submit_embeddings(texts, adapter))

    @abstractmethod
    def count_tokens(self, text: str | Sequence[Message]) -> int:
        """Count the tokens of raw text, or of a conversation as its prompt would be rendered."""

    def count_prompt(self, request: GenerationRequest) -> int:  # noqa: ARG002
        """Count the tokens of all that `submit` would have read, tools included.

        Raises:
            RequestError: no prompt can be made of the request.
            UnsupportedError: this backend counts nothing beforehand.
        """
        raise UnsupportedError("this backend does not count tokens beforehand")

    @abstractmethod
    def tokenize(self, text: str | Sequence[int], *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a raw prompt; ids are checked and returned.

        Args:
            add_special_tokens: those that the tokenizer puts around text by itself, such as a BOS.
        """

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, control tokens included. Raises `RequestError`."""

    @abstractmethod
    def info(self) -> EngineInfo:
        """Describe what is loaded. Raises `EngineStoppedError` before `load` and after `close`."""

    @abstractmethod
    def close(self) -> None:
        """End every request in flight with `EngineStoppedError` and free the model. Idempotent."""

    @abstractmethod
    def state(self) -> EngineState:
        """Say how the engine is doing. Raises like `info`."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """How many submitted requests have not ended, those to score or embed included."""

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Answer in one piece: a fold over the stream."""
        with self.submit(request) as stream:
            return collect_result(stream)

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

    def begin_unload_adapter(self, name: str) -> Future[None]:
        """Take the name away at once, and the adapter when the last request under it has ended.

        Returns:
            What is done then. It cannot be cancelled.

        Raises:
            RequestError: no such adapter is loaded.
            UnsupportedError: this backend has no adapters by request.
        """
        raise UnsupportedError(f"this backend cannot unload {name!r}", param="adapter")

    def unload_adapter(self, name: str) -> None:
        """Do as `retire_adapter`, and block until it is done."""
        self.begin_unload_adapter(name).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _result(pending: Future[T]) -> T:
    """Wait; whoever is interrupted meanwhile leaves no work behind."""
    try:
        return pending.result()
    finally:
        pending.cancel()
