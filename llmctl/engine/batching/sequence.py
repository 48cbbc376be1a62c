"""State of a request, of each of its choices in the scheduler, and of their output."""

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

from llmctl.engine.batching.kv_cache import KVCache
from llmctl.engine.batching.sampling.sampler import SequenceSampler
from llmctl.engine.batching.sampling.speculation import PromptLookup
from llmctl.engine.chat.detokenize import TokenDecoder
from llmctl.engine.chat.response_delta import ResponseParser
from llmctl.engine.chat.stop_strings import StopStringScanner
from llmctl.engine.stream import GenerationStream
from llmctl.types import FinishReason, GenerationChunk, SamplingParams, TokenLogprob, Usage


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


class RequestState:
    """A request in flight: its choices and the stream that carries their chunks."""

    def __init__(self, prompt_ids: list[int], stream: GenerationStream) -> None:
        self.prompt_ids = prompt_ids
        self.stream = stream
        self.outputs: list[OutputState] = []
        self.cached_tokens = 0

    def emit(self, chunk: GenerationChunk) -> None:
        """Put a chunk on the stream. The chunk that ends the last choice carries the usage."""
        if chunk.finish_reason is None or not self.complete:
            self.stream.put(chunk)
            return
        completion_tokens = sum(len(output.token_ids) for output in self.outputs)
        usage = Usage(len(self.prompt_ids), completion_tokens, self.cached_tokens)
        self.stream.put(replace(chunk, usage=usage))
        self.stream.finish()

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return all(output.finish_reason for output in self.outputs)


@dataclass(eq=False, slots=True)
class ScheduledSequence:
    """One choice in the scheduler: its output, its sampler and, while it runs, its KV cache."""

    request: RequestState
    output: OutputState
    sampler: SequenceSampler
    adapter: str | None = None
    cache: KVCache | None = None
    lookup: PromptLookup | None = None
    """Source of draft tokens; `None` turns speculation off."""
    started: bool = False
    """Whether it was admitted before: a preempted sequence waits again."""

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output so far."""
        return self.output.prompt_ids + self.output.token_ids

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the output so far."""
        return len(self.output.prompt_ids) + len(self.output.token_ids)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet: one while decoding, more during prefill."""
        return self.length - (0 if self.cache is None else self.cache.length)

    def draft(self) -> list[int]:
        """Return draft tokens, fewer than the output may still have; none without speculation."""
        if self.lookup is None or self.cache is None or not self.cache.can_truncate:
            return []
        left = self.output.max_new_tokens - len(self.output.token_ids)
        return self.lookup.propose(self.token_ids)[: left - 1]

    def next_ids(self, limit: int) -> list[int]:
        """Return the next tokens to compute, at most `limit`. The sequence must have a cache."""
        assert self.cache is not None
        cached, prompt = self.cache.length, self.output.prompt_ids
        if cached >= len(prompt):
            cached -= len(prompt)
            return self.output.token_ids[cached : cached + limit]
        return self.token_ids[cached : cached + limit]
