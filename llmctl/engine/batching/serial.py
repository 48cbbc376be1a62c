"""Writes one reply at a time through `generate()`, which works for every Transformers model.

`generate()` knows each architecture's cache and inputs; sampling stays ours, so that a reply does
not depend on the way it was computed. Our hook takes the logits of each step, samples, and leaves
`generate()` a single token to choose.
"""

import logging
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from llmctl.engine.batching.embedding import normalize
from llmctl.engine.batching.forward.lora import AdapterSegments, HookedAdapters, LoraAdapter
from llmctl.engine.batching.sampling.logprobs import TokenBytes, token_logprobs
from llmctl.engine.batching.sampling.sampler import sample
from llmctl.engine.batching.scoring import (
    LogprobsFn,
    TokenizedContinuation,
    no_token_logprobs,
    target_logprobs,
)
from llmctl.engine.batching.sequence import ScheduledSequence as RowSequence
from llmctl.engine.error_translation import translate_error
from llmctl.types import EngineState, Score

_log = logging.getLogger(__name__)


class SerialExecutor:
    """Runs sequences to their end, one after the other, on the calling thread."""

    def __init__(self, model: Any, texts: TokenBytes) -> None:
        from transformers import GenerationConfig

        self._model = model
        self._texts = texts
        # generate() fills what a call leaves open from here: the model's own sampling defaults
        # would act on top of ours.
        model.generation_config = GenerationConfig()
        self._waiting: deque[RowSequence] = deque()
        self._writing: _Hook | None = None
        self._rows = AdapterSegments()
        self._adapters = HookedAdapters(model, self._rows)

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def state(self) -> EngineState:
        """Count what runs and waits. Any thread may ask."""
        writing, waiting = self._writing, len(self._waiting)
        if writing is None:
            return EngineState(True, 0.0, 0, waiting, max_rows=1)
        return EngineState(True, time.monotonic() - writing.last_token, 1, waiting, max_rows=1)

    def add(self, sequence: RowSequence) -> None:
        """Put a sequence in line."""
        self._waiting.append(sequence)

    def step(self) -> None:
        """Write the next reply to its end, or until its owner has left."""
        sequence = self._waiting.popleft()
        stream = sequence.job.stream
        try:
            if not stream.cancelled:
                self._write(sequence)
        except Exception as error:
            _log.exception("request %s failed", stream.request_id)
            stream.fail(translate_error(error))
            stream.cancel()
        finally:
            self._writing = None
        if stream.cancelled:
            stream.finish()

    def _write(self, sequence: RowSequence) -> None:
        row = sequence.row
        self._rows.all_under(sequence.adapter)
        self._writing = hook = _Hook(sequence, self._texts)
        prompt = torch.tensor([row.prompt_ids], device=self._model.device)
        with torch.inference_mode():
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=row.max_new_tokens,
                logits_processor=[hook.choose],
                stopping_criteria=[hook.is_over],
                pad_token_id=0,
                use_cache=True,
            )

    def score(
        self,
        pairs: Sequence[TokenizedContinuation],
        adapter: str | None,
        describe: LogprobsFn = no_token_logprobs,
    ) -> Generator[None, None, tuple[Score, ...]]:
        """Score the continuations of one context, a forward pass each."""
        scores = []
        for ids, tail in pairs:
            self._rows.all_under(adapter)
            with torch.inference_mode():
                inputs = torch.tensor([ids[:-1]], device=self._model.device)
                output = self._model(input_ids=inputs, logits_to_keep=tail, use_cache=False)
                logits = output.logits[0, -tail:]
                logprobs, greedy = target_logprobs(logits, ids[-tail:])
                tokens = describe(logits, ids[-tail:])
            scores.append(Score(sum(logprobs), tail, all(greedy), tokens))
            yield
        return tuple(scores)

    def embed(
        self, ids: Sequence[int], adapter: str | None
    ) -> Generator[None, None, tuple[float, ...]]:
        """Embed a text in one forward pass."""
        self._rows.all_under(adapter)
        with torch.inference_mode():
            inputs = torch.tensor([list(ids)], device=self._model.device)
            output = self._model.base_model(input_ids=inputs, use_cache=False)
            total = output.last_hidden_state[0].float().sum(0).cpu()
        yield
        return normalize(total)

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter, for sequences that name its key."""
        self._adapters.put(key, adapter)

    def drop_adapter(self, key: str) -> bool:
        """Forget an adapter, unless a sequence needs it; return whether it went."""
        if any(sequence.adapter == key for sequence in self._waiting):
            return False
        self._adapters.drop(key)
        return True

    def fail_all(self, error: BaseException) -> None:
        """End every sequence with an error."""
        while self._waiting:
            self._waiting.popleft().job.stream.fail(translate_error(error))


class _Hook:
    """Both callbacks of one `generate()` call; Transformers calls them in turn at every step."""

    def __init__(self, sequence: RowSequence, texts: TokenBytes) -> None:
        self._sequence = sequence
        self._texts = texts
        self.last_token = time.monotonic()

    def choose(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Sample from `scores` (1, vocab); return scores that admit the sampled token alone."""
        self.last_token = time.monotonic()
        sampler = self._sequence.sampler
        chosen = sample(scores, [sampler])
        entry = token_logprobs(scores, chosen, [sampler.logprobs], self._texts)[0]
        sampler.remember(chosen[0])
        self._sequence.row.accept(chosen[0], entry)
        only = torch.full_like(scores, float("-inf"))
        only[0, chosen[0]] = 0.0
        return only

    def is_over(self, ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        over = self._sequence.row.finish_reason is not None or self._sequence.job.stream.cancelled
        return torch.full((ids.shape[0],), over, device=ids.device)
