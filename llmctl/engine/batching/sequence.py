"""Scheduler state of a request and of each of its choices."""

from dataclasses import dataclass, replace

from llmctl.engine.batching.kv_cache import KVCache
from llmctl.engine.batching.output_state import OutputState
from llmctl.engine.batching.sampling.sampler import SequenceSampler
from llmctl.engine.batching.sampling.speculation import PromptLookup
from llmctl.engine.stream import GenerationStream
from llmctl.types import GenerationChunk, Usage


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
