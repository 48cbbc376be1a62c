"""One choice of one request: what it has generated, what of it may be shown, and when it ends."""

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from llmctl.engine.chat.detokenize import StopStringScanner, TokenDecoder
from llmctl.engine.chat.response_delta import ResponseParser
from llmctl.types import FinishReason, GenerationChunk, SamplingParams, TokenLogprob


class _PendingLogprob(NamedTuple):
    start: int  # characters of decoded text before this token
    entry: TokenLogprob


class OutputState:
    """The state of one reply while the model writes it.

    `accept` takes the sampled tokens one by one and hands chunks to `emit`, which must not block.
    The chunk that ends the row has its finish reason and no usage: that is the request's.
    """

    def __init__(
        self,
        index: int,
        prompt_ids: list[int],
        params: SamplingParams,
        max_new_tokens: int,
        end_ids: Collection[int],
        decoder: TokenDecoder,
        emit: Callable[[GenerationChunk], None],
        reader: ResponseParser | None = None,
    ) -> None:
        self.index = index
        self.prompt_ids = prompt_ids
        self.params = params
        self.output_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.max_new_tokens = max_new_tokens
        self._end_ids = frozenset(end_ids)
        self._decoder = decoder
        self._scanner = StopStringScanner(params.stop or ())
        self._emit = emit
        self._reader = reader
        self._called = False
        self._decoded = 0
        self._shown = 0
        self._pending: deque[_PendingLogprob] = deque()

    def accept(self, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Take the next token. Must not be called once there is a `finish_reason`."""
        self.output_ids.append(token_id)
        if token_id in self._end_ids:
            self._finish("stop", self._scanner.flush())
            return
        if logprob is not None:
            self._pending.append(_PendingLogprob(self._decoded, logprob))
        piece = self._decoder.push(token_id)
        self._decoded += len(piece)
        text = self._scanner.feed(piece)
        if self._scanner.stopped:
            self._finish("stop", text, cut=True)
        elif len(self.output_ids) >= self.max_new_tokens:
            self._finish("length", text + self._scanner.flush())
        elif text:
            self._shown += len(text)
            self._say(text, self._released())

    def end(self) -> None:
        """End the reply here: there is nothing more to say."""
        self._finish("stop", self._scanner.flush())

    def _finish(self, reason: FinishReason, text: str, *, cut: bool = False) -> None:
        self._shown += len(text)
        if cut:
            entries = self._released()
        else:
            entries = tuple(p.entry for p in self._pending)
            self._pending.clear()
        self.finish_reason = reason
        self._say(text, entries, reason)

    def _say(
        self,
        text: str,
        entries: tuple[TokenLogprob, ...],
        reason: FinishReason | None = None,
    ) -> None:
        if self._reader is None:
            self._emit(GenerationChunk(text, self.index, entries, reason))
            return
        parts = self._reader.feed(text)
        if reason is not None:
            parts += self._reader.end()
        calls = tuple(part.call for part in parts if part.call is not None)
        self._called |= bool(calls)
        if reason == "stop" and self._called:
            reason = "tool_calls"
        answer = "".join(part.text for part in parts)
        reasoning = "".join(part.reasoning for part in parts)
        if answer or reasoning or calls or entries or reason:
            self._emit(
                GenerationChunk(
                    answer,
                    self.index,
                    entries,
                    reason,
                    reasoning=reasoning,
                    tool_calls=calls,
                )
            )

    def _released(self) -> tuple[TokenLogprob, ...]:
        """Log-probabilities travel with the first text of their token, so a stop cuts both."""
        entries = []
        while self._pending and self._pending[0].start < self._shown:
            entries.append(self._pending.popleft().entry)
        return tuple(entries)
