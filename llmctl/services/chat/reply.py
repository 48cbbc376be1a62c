"""A reply that is being generated: its chunks, timing and final state."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from time import perf_counter

from llmctl.engine.stream import GenerationStream
from llmctl.errors import LlmctlError
from llmctl.services.chat.conversation import ReplyStats, Turn, TurnState
from llmctl.types import EngineInfo, GenerationChunk, Message, Usage


class ChatReply:
    """A streamed reply. Iterate for its chunks; `turn` is the turn to store afterwards.

    Args:
        stream: the generation, which the reply owns and closes.
        sent_s: when the message was sent, by `perf_counter`.
    """

    def __init__(self, stream: GenerationStream, info: EngineInfo, sent_s: float) -> None:
        self._stream = stream
        self._info = info
        self._sent_s = sent_s
        self._first_s: float | None = None
        self._end_s = sent_s
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._chunk_count = 0
        self._usage: Usage | None = None
        self.state: TurnState = "stopped"
        """Final state; `stopped` until the reply has ended."""
        self._note = ""
        self._chunks = self._read_chunks()

    def __iter__(self) -> Iterator[GenerationChunk]:
        """Yield chunks as they arrive. Raises the `LlmctlError` that ends the reply."""
        return self._chunks

    def _read_chunks(self) -> Generator[GenerationChunk, None, None]:
        try:
            with self._stream:
                for chunk in self._stream:
                    yield self._record(chunk)
        except LlmctlError as error:
            self.state, self._note = "failed", str(error)
            raise
        finally:
            self._end_s = perf_counter()

    def _record(self, chunk: GenerationChunk) -> GenerationChunk:
        if self._first_s is None and (chunk.text or chunk.reasoning):
            self._first_s = perf_counter()
        self._chunk_count += bool(chunk.text or chunk.reasoning)
        self._texts.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        self._usage = chunk.usage or self._usage
        if chunk.finish_reason is not None:
            self.state = "cut" if chunk.finish_reason == "length" else "whole"
        return chunk

    def stop(self) -> None:
        """Cancel the generation; received text is kept. May be called again."""
        self._stream.cancel()
        self._chunks.close()

    @property
    def tokens(self) -> int:
        """Completion tokens as reported by the engine, or the number of chunks without a report."""
        return self._chunk_count if self._usage is None else self._usage.completion_tokens

    @property
    def turn(self) -> Turn | None:
        """The received reply, or `None` if it is empty."""
        text, reasoning = "".join(self._texts), "".join(self._reasoning)
        if not text.strip() and not reasoning.strip():
            return None
        return Turn(
            Message("assistant", text, reasoning=reasoning or None),
            self.state,
            self._note,
            self._info.model_id,
            figures=self._stats(),
        )

    def _stats(self) -> ReplyStats:
        end_s = max(self._end_s, self._first_s or 0.0)
        stats = ReplyStats(
            duration_s=end_s - self._sent_s,
            ttft_s=None if self._first_s is None else self._first_s - self._sent_s,
            completion_tokens=self.tokens,
            context_length=self._info.context_length,
        )
        if self._usage is None:
            return stats
        return replace(
            stats,
            prompt_tokens=self._usage.prompt_tokens or None,
            cached_tokens=self._usage.cached_tokens,
        )
