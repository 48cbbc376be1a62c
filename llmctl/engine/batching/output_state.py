"""State of one generated choice: its tokens, the text already emitted, and its finish reason."""

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from llmctl.engine.chat.detokenize import TokenDecoder
from llmctl.engine.chat.response_delta import ResponseParser
from llmctl.engine.chat.stop_strings import StopStringScanner
from llmctl.types import FinishReason, GenerationChunk, SamplingParams, TokenLogprob


class _PendingLogprob(NamedTuple):
    start: int  # characters of decoded text before this token
    entry: TokenLogprob


class OutputState:
    """The output of one choice while it is generated.

    `accept` takes the sampled tokens one by one and passes chunks to `emit`, which must not block.
    The last chunk has the finish reason and no usage: the usage belongs to the whole request.

    Args:
        index: of the choice within its request.
        prompt_ids: token ids of the prompt.
        params: resolved sampling parameters.
        max_new_tokens: tokens after which the choice ends with the reason `length`.
        end_ids: token ids that end the choice with the reason `stop`.
        decoder: incremental detokenizer of this choice.
        emit: receives each chunk.
        parser: separates reasoning and tool calls from the text; `None` emits all text as it is.
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
        parser: ResponseParser | None = None,
    ) -> None:
        self.index = index
        self.prompt_ids = prompt_ids
        self.params = params
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.max_new_tokens = max_new_tokens
        self._end_ids = frozenset(end_ids)
        self._decoder = decoder
        self._scanner = StopStringScanner(params.stop or ())
        self._emit = emit
        self._parser = parser
        self._has_tool_calls = False
        self._decoded_chars = 0
        self._emitted_chars = 0
        self._pending: deque[_PendingLogprob] = deque()

    def accept(self, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Append the next token. Must not be called after `finish_reason` is set."""
        self.token_ids.append(token_id)
        if token_id in self._end_ids:
            self._finish("stop", self._scanner.flush())
            return
        if logprob is not None:
            self._pending.append(_PendingLogprob(self._decoded_chars, logprob))
        decoded = self._decoder.push(token_id)
        self._decoded_chars += len(decoded)
        text = self._scanner.feed(decoded)
        if self._scanner.stopped:
            self._finish("stop", text, cut=True)
        elif len(self.token_ids) >= self.max_new_tokens:
            self._finish("length", text + self._scanner.flush())
        elif text:
            self._emitted_chars += len(text)
            self._emit_text(text, self._emitted_logprobs())

    def end(self) -> None:
        """End the choice here with the reason `stop`."""
        self._finish("stop", self._scanner.flush())

    def _finish(self, reason: FinishReason, text: str, *, cut: bool = False) -> None:
        self._emitted_chars += len(text)
        if cut:
            entries = self._emitted_logprobs()
        else:
            entries = tuple(pending.entry for pending in self._pending)
            self._pending.clear()
        self.finish_reason = reason
        self._emit_text(text, entries, reason)

    def _emit_text(
        self,
        text: str,
        entries: tuple[TokenLogprob, ...],
        reason: FinishReason | None = None,
    ) -> None:
        if self._parser is None:
            self._emit(GenerationChunk(text, self.index, logprobs=entries, finish_reason=reason))
            return
        deltas = self._parser.feed(text)
        if reason is not None:
            deltas += self._parser.end()
        calls = tuple(delta.call for delta in deltas if delta.call is not None)
        self._has_tool_calls |= bool(calls)
        if reason == "stop" and self._has_tool_calls:
            reason = "tool_calls"
        content = "".join(delta.text for delta in deltas)
        reasoning = "".join(delta.reasoning for delta in deltas)
        if content or reasoning or calls or entries or reason:
            self._emit(
                GenerationChunk(
                    content,
                    self.index,
                    logprobs=entries,
                    finish_reason=reason,
                    reasoning=reasoning,
                    tool_calls=calls,
                )
            )

    def _emitted_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Take the entries whose text has been emitted, so that a stop string cuts both alike."""
        entries = []
        while self._pending and self._pending[0].start < self._emitted_chars:
            entries.append(self._pending.popleft().entry)
        return tuple(entries)
