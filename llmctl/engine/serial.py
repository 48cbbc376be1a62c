"""Writes one reply at a time through `generate()`, which works for every Transformers model.

`generate()` knows each architecture's cache and inputs; sampling stays ours, so that a reply does
not depend on the way it was computed. Our hook takes the logits of each step, samples, and leaves
`generate()` a single token to choose.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llmctl.engine.batching.logprobs import TokenTexts, token_logprobs
from llmctl.engine.batching.row import Row
from llmctl.engine.batching.sampler import RowSampler, sample


class SerialWriter:
    """Runs rows to their end, one after the other, on the calling thread."""

    def __init__(self, model: Any, texts: TokenTexts) -> None:
        from transformers import GenerationConfig

        self._model = model
        self._texts = texts
        # generate() fills what a call leaves open from here: the model's own sampling defaults
        # would act on top of ours.
        model.generation_config = GenerationConfig()

    def write(self, row: Row, is_cancelled: Callable[[], bool]) -> None:
        """Generate until the row ends or its owner has left."""
        hook = _Hook(row, self._texts, is_cancelled)
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

    def score(self, sequences: Sequence[tuple[list[int], int]]) -> list[Tensor]:
        """Return the logits that predict the last tokens of each sequence.

        Args:
            sequences: token ids, and how many at the end are wanted.

        Returns:
            Per sequence a float32 tensor of shape (wanted, vocab).
        """
        results = []
        with torch.inference_mode():
            for ids, wanted in sequences:
                inputs = torch.tensor([ids[:-1]], device=self._model.device)
                output = self._model(input_ids=inputs, logits_to_keep=wanted, use_cache=False)
                results.append(output.logits[0, -wanted:].float())
        return results


class _Hook:
    """Both callbacks of one `generate()` call; Transformers calls them in turn at every step."""

    def __init__(self, row: Row, texts: TokenTexts, is_cancelled: Callable[[], bool]) -> None:
        self._row = row
        self._texts = texts
        self._is_cancelled = is_cancelled
        self._sampler = RowSampler(row.params, row.prompt_ids, row.index)

    def choose(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Sample from `scores` (1, vocab); return scores that admit the sampled token alone."""
        chosen = sample(scores, [self._sampler])
        logprob = token_logprobs(scores, chosen, [self._sampler.logprobs], self._texts)[0]
        self._row.accept(chosen[0], logprob)
        only = torch.full_like(scores, float("-inf"))
        only[0, chosen[0]] = 0.0
        return only

    def is_over(self, ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        over = self._row.finish_reason is not None or self._is_cancelled()
        return torch.full((ids.shape[0],), over, device=ids.device)
