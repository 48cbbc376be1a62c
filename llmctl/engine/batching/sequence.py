"""One choice on its way through the step loop: what is known, and what is still to compute."""

from dataclasses import dataclass, field, replace

from llmctl.engine.batching.kv import KVCache
from llmctl.engine.batching.output_state import OutputState
from llmctl.engine.batching.sampling.sampler import SequenceSampler
from llmctl.engine.batching.sampling.speculation import PromptLookup
from llmctl.engine.stream import GenerationStream
from llmctl.types import GenerationChunk, Usage


class RequestState:
    """A request in flight: its choices, and the stream they answer on."""

    def __init__(self, prompt_ids: list[int], stream: GenerationStream) -> None:
        self.prompt_ids = prompt_ids
        self.stream = stream
        self.rows: list[OutputState] = []
        self.cached_tokens = 0

    def emit(self, chunk: GenerationChunk) -> None:
        """Pass a row's chunk on; the one that ends the last row carries the usage."""
        if chunk.finish_reason is None or not self.complete:
            self.stream.put(chunk)
            return
        written = sum(len(row.output_ids) for row in self.rows)
        usage = Usage(len(self.prompt_ids), written, self.cached_tokens)
        self.stream.put(replace(chunk, usage=usage))
        self.stream.finish()

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return all(row.finish_reason for row in self.rows)


@dataclass(eq=False, slots=True)
class ScheduledSequence:
    """A row, its sampler, and the cache it holds while it runs."""

    job: RequestState
    row: OutputState
    sampler: SequenceSampler
    adapter: str | None = None
    cache: KVCache | None = field(default=None)
    lookup: PromptLookup | None = None
    """Guesses its next tokens, if it may."""
    admitted_before: bool = False
    """Whether it has run already, and only lost its cache to others."""

    @property
    def token_ids(self) -> list[int]:
        """Prompt and reply so far."""
        return self.row.prompt_ids + self.row.output_ids

    @property
    def pending(self) -> int:
        """Tokens not in the cache yet: one while decoding, more during prefill."""
        held = 0 if self.cache is None else self.cache.length
        return len(self.row.prompt_ids) + len(self.row.output_ids) - held

    def next_ids(self, most: int) -> list[int]:
        """Return the next tokens to compute, at most so many. It must hold a cache."""
        assert self.cache is not None
        held, prompt = self.cache.length, self.row.prompt_ids
        if held >= len(prompt):
            held -= len(prompt)
            return self.row.output_ids[held : held + most]
        return self.token_ids[held : held + most]
