"""A conversation with one model: keeps the turns, streams the replies."""

from collections.abc import Generator
from types import TracebackType
from typing import Self

from llmctl.engine.base import BaseEngine
from llmctl.engine.registry import create_engine
from llmctl.types import (
    EngineInfo,
    GenerationRequest,
    Message,
    ModelSpec,
    ProgressCallback,
    SamplingParams,
)


class ChatSession:
    """The turns so far, and the engine that answers, which the session owns and closes."""

    def __init__(self, engine: BaseEngine, sampling: SamplingParams, system: str | None) -> None:
        self._engine = engine
        self._sampling = sampling
        self._opening = () if system is None else (Message("system", system),)
        self.turns: list[Message] = []

    def info(self) -> EngineInfo:
        """Describe the model that answers."""
        return self._engine.info()

    def say(self, text: str) -> Generator[str, None, None]:
        """Yield the reply to `text` piece by piece.

        Closing the iterator, or an interrupt while it waits, stops the model and keeps what came.
        A reply of which nothing came leaves the conversation as it was.
        """
        user = Message("user", text)
        request = GenerationRequest((*self._opening, *self.turns, user), sampling=self._sampling)
        pieces: list[str] = []
        with self._engine.submit(request) as stream:
            try:
                for chunk in stream:
                    pieces.append(chunk.text)
                    if chunk.text:
                        yield chunk.text
            except BaseException:  # the engine failed, Ctrl-C, or the caller has had enough
                if pieces:
                    self._keep(user, pieces)
                raise
        self._keep(user, pieces)

    def _keep(self, user: Message, pieces: list[str]) -> None:
        self.turns += [user, Message("assistant", "".join(pieces))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.close()

    def clear(self) -> None:
        """Begin anew, with the same system prompt."""
        self.turns.clear()


def open_session(
    spec: ModelSpec,
    sampling: SamplingParams,
    system: str | None,
    progress: ProgressCallback,
) -> ChatSession:
    """Load the model and begin a conversation with it."""
    engine = create_engine(spec)
    engine.load(progress)
    return ChatSession(engine, sampling, system)
