"""Executor that generates one reply at a time with Transformers' `generate()`, for any model.

`generate()` handles the cache and the inputs of each architecture. Sampling is that of the batched
executors, so that a reply does not depend on the executor: a logits processor samples the token and
masks all others, and `generate()` takes the one that is left.
"""

import logging
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from llmctl.engine.auto_model import model_body
from llmctl.engine.batching.embedding import normalize
from llmctl.engine.batching.forward.lora import AdapterSegments, HookedAdapters, LoraAdapter
from llmctl.engine.batching.forward.packed import last_hidden_state
from llmctl.engine.batching.sampling.logprobs import TokenBytes, token_logprobs
from llmctl.engine.batching.sampling.sampler import sample
from llmctl.engine.batching.scoring import (
    LogprobsFn,
    TokenizedContinuation,
    no_token_logprobs,
    target_logprobs,
)
from llmctl.engine.batching.sequence import ScheduledSequence
from llmctl.engine.error_translation import translate_error
from llmctl.types import EngineState, Score

_log = logging.getLogger(__name__)


class SerialExecutor:
    """Runs sequences one after the other, each to its end, on the calling thread."""

    def __init__(self, model: Any, token_bytes: TokenBytes) -> None:
        from transformers import GenerationConfig

        self._model = model
        self._token_bytes = token_bytes
        # generate() takes missing arguments from here: the model's sampling defaults would be
        # applied on top of our sampling.
        model.generation_config = GenerationConfig()
        self._waiting: deque[ScheduledSequence] = deque()
        self._current: _GenerateHooks | None = None
        self._segments = AdapterSegments()
        self._adapters = HookedAdapters(model, self._segments)

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def state(self) -> EngineState:
        """Count running and waiting sequences. Thread-safe."""
        current, waiting = self._current, len(self._waiting)
        if current is None:
            return EngineState(True, 0.0, 0, waiting, max_rows=1)
        return EngineState(True, time.monotonic() - current.last_token_time, 1, waiting, max_rows=1)

    def add(self, sequence: ScheduledSequence) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)

    def step(self) -> None:
        """Generate the next reply to its end, or until it is cancelled."""
        sequence = self._waiting.popleft()
        stream = sequence.request.stream
        try:
            if not stream.cancelled:
                self._generate(sequence)
        except Exception as error:
            _log.exception("request %s failed", stream.request_id)
            stream.fail(translate_error(error))
            stream.cancel()
        finally:
            self._current = None
        if stream.cancelled:
            stream.finish()

    def _generate(self, sequence: ScheduledSequence) -> None:
        output = sequence.output
        self._segments.set_all(sequence.adapter)
        self._current = hooks = _GenerateHooks(sequence, self._token_bytes)
        prompt = torch.tensor([output.prompt_ids], device=self._model.device)
        body = model_body(self._model)
        with torch.inference_mode():
            if hasattr(body, "_setup_cache"):  # the modules keep states, which outlive a request
                body._setup_cache(body.config, 1, self._model.device, self._model.dtype)
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=output.max_new_tokens,
                logits_processor=[hooks.sample],
                stopping_criteria=[hooks.is_finished],
                pad_token_id=0,
                use_cache=True,
            )

    def score(
        self,
        continuations: Sequence[TokenizedContinuation],
        adapter: str | None,
        describe: LogprobsFn = no_token_logprobs,
    ) -> Generator[None, None, tuple[Score, ...]]:
        """Score the continuations of one context, each in one forward pass."""
        scores = []
        for ids, count in continuations:
            self._segments.set_all(adapter)
            with torch.inference_mode():
                inputs = torch.tensor([ids[:-1]], device=self._model.device)
                output = self._model(input_ids=inputs, logits_to_keep=count, use_cache=False)
                logits = output.logits[0, -count:]
                logprobs, greedy = target_logprobs(logits, ids[-count:])
                entries = describe(logits, ids[-count:])
            scores.append(Score(sum(logprobs), count, all(greedy), entries))
            yield
        return tuple(scores)

    def embed(
        self, ids: Sequence[int], adapter: str | None
    ) -> Generator[None, None, tuple[float, ...]]:
        """Embed a text in one forward pass."""
        self._segments.set_all(adapter)
        with torch.inference_mode():
            inputs = torch.tensor([list(ids)], device=self._model.device)
            states = last_hidden_state(self._model, {"input_ids": inputs, "use_cache": False})
            total = states[0].float().sum(0).cpu()
        yield
        return normalize(total)

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Add an adapter, for sequences that name its key."""
        self._adapters.put(key, adapter)

    def drop_adapter(self, key: str) -> bool:
        """Remove an adapter unless a sequence uses it; return whether it did."""
        if any(sequence.adapter == key for sequence in self._waiting):
            return False
        self._adapters.drop(key)
        return True

    def fail_all(self, error: BaseException) -> None:
        """End every sequence with an error."""
        while self._waiting:
            self._waiting.popleft().request.stream.fail(translate_error(error))


class _GenerateHooks:
    """Logits processor and stopping criterion of one `generate()` call, called at every step."""

    def __init__(self, sequence: ScheduledSequence, token_bytes: TokenBytes) -> None:
        self._sequence = sequence
        self._token_bytes = token_bytes
        self.last_token_time = time.monotonic()

    def sample(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Sample from `scores` (1, vocab); return scores that mask all other tokens."""
        self.last_token_time = time.monotonic()
        sampler = self._sequence.sampler
        (token_id,) = sample(scores, [sampler])
        entry = token_logprobs(scores, [token_id], [sampler.logprobs], self._token_bytes)[0]
        sampler.record(token_id)
        self._sequence.output.accept(token_id, entry)
        masked = torch.full_like(scores, float("-inf"))
        masked[0, token_id] = 0.0
        return masked

    def is_finished(self, ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        finished = (
            self._sequence.output.finish_reason is not None
            or self._sequence.request.stream.cancelled
        )
        return torch.full((ids.shape[0],), finished, device=ids.device)
