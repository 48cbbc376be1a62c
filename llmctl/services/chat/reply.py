"""A reply on its way: what has come of it, how long it took, and how it ended."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from time import perf_counter

from llmctl.engine.stream import GenerationStream
from llmctl.errors import LlmctlError
from llmctl.services.chat.conversation import ReplyStats, Turn, TurnState
from llmctl.types import EngineInfo, GenerationChunk, Message, Usage


class ChatReply:
    """Iterate for its pieces; then `turn` is what there is to keep.

    Args:
        stream: the request, which the reply owns.
        asked_s: when it was asked, by `perf_counter`.
    """

    def __init__(self, stream: GenerationStream, info: EngineInfo, asked_s: float) -> None:
        self._stream = stream
        self._info = info
        self._asked_s = asked_s
        self._first_s: float | None = None
        self._ended_s = asked_s
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._pieces_seen = 0
        self._usage: Usage | None = None
        self.state: TurnState = "stopped"
        """How it ended; `stopped` until it does."""
        self._note = ""
        self._pieces = self._arriving()

    def __iter__(self) -> Iterator[GenerationChunk]:
        """Yield pieces as they come. Raises the `LlmctlError` that ends the reply."""
        return self._pieces

    def _arriving(self) -> Generator[GenerationChunk, None, None]:
        try:
            with self._stream:
                for chunk in self._stream:
                    yield self._noted(chunk)
        except LlmctlError as error:
            self.state, self._note = "failed", str(error)
            raise
        finally:
            self._ended_s = perf_counter()

    def _noted(self, chunk: GenerationChunk) -> GenerationChunk:
        if self._first_s is None and (chunk.text or chunk.reasoning):
            self._first_s = perf_counter()
        self._pieces_seen += bool(chunk.text or chunk.reasoning)
        self._texts.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        self._usage = chunk.usage or self._usage
        if chunk.finish_reason is not None:
            self.state = "cut" if chunk.finish_reason == "length" else "whole"
        return chunk

    def stop(self) -> None:
        """Break it off; what has come stays. Harmless after the end."""
        self._stream.cancel()
        self._pieces.close()

    @property
    def tokens(self) -> int:
        """Tokens that came, as the engine counts them, or else pieces."""
        return self._pieces_seen if self._usage is None else self._usage.completion_tokens

    @property
    def turn(self) -> Turn | None:
        """What came, or `None` if nothing did."""
        text, reasoning = "".join(self._texts), "".join(self._reasoning)
        if not text.strip() and not reasoning.strip():
            return None
        return Turn(
            Message("assistant", text, reasoning=reasoning or None),
            self.state,
            self._note,
            self._info.model_id,
            figures=self._figures(),
        )

    def _figures(self) -> ReplyStats:
        end = max(self._ended_s, self._first_s or 0.0)
        figures = ReplyStats(
            duration_s=end - self._asked_s,
            ttft_s=None if self._first_s is None else self._first_s - self._asked_s,
            completion_tokens=self.tokens,
            context_length=self._info.context_length,
        )
        if self._usage is None:
            return figures
        return replace(
            figures,
            prompt_tokens=self._usage.prompt_tokens or None,
            cached_tokens=self._usage.cached_tokens,
        )
