"""The forward pass of models with recurrent layers, over rows with a state each.

Recurrent layers (Mamba, gated delta nets, short convolutions) read a row from its first token to
its last, so sequences cannot be packed end to end. Decoding sequences are the rows of one batch of
a token each. Prompts are computed one by one, and the branches of a prompt as rows with padding at
their ends, whose states are dropped. Attention layers use the caches of the sequences as in
`packed`.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmctl.engine.batching.forward import attention
from llmctl.engine.batching.forward.cache_layout import (
    CacheLayout,
    get_states,
    set_states,
    state_kinds,
)
from llmctl.engine.batching.forward.lora import AdapterSegments, HookedAdapters, LoraAdapter
from llmctl.engine.batching.forward.packed import BatchItem, last_hidden_state
from llmctl.engine.batching.forward.recurrent_steps import use_cpu_steps
from llmctl.engine.batching.forward.step import PackedStep, Segment, current_step
from llmctl.engine.batching.kv_cache import States
from llmctl.engine.batching.recurrent_cache import RecurrentCache


class RecurrentForward:
    """A `Forward` for models with recurrent layers. Used by the engine thread alone.

    Args:
        model: of Transformers.
        layout: of its cache, with states.
    """

    def __init__(self, model: Any, layout: CacheLayout) -> None:
        self.model = model
        self._layout = layout
        self._segments = AdapterSegments()
        self._adapters = HookedAdapters(model, self._segments)
        self._kinds: list[tuple[int, str, int]] = []
        # The batch of the last step: its rows keep their places while they stay the same.
        self._last: tuple[Any, States, list[States]] | None = None
        if model.device.type == "cpu":
            use_cpu_steps(model)
        attention.register()
        model.set_attn_implementation(attention.NAME)

    @torch.inference_mode()
    def run(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute one step; see `Forward.run`."""
        parts: list[list[Tensor]] = [[] for _ in batch]
        rows = [i for i, item in enumerate(batch) if _is_row(item)]
        if rows:
            logits = self._rows([batch[i] for i in rows])
            for row, i in enumerate(rows):
                if batch[i].logit_indices:
                    parts[i].append(logits[row : row + 1])
        for i, item in enumerate(batch):
            if not _is_row(item):
                parts[i] += self._prompt(item)
        flat = [part for own in parts for part in own]
        vocab: int = self.model.config.get_text_config(decoder=True).vocab_size
        return torch.cat(flat) if flat else torch.zeros(0, vocab, device=self.model.device)

    @torch.inference_mode()
    def states(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute one step up to the head; see `Forward.states`."""
        return torch.cat([self._hidden(item) for item in batch])

    def _rows(self, items: Sequence[BatchItem]) -> Tensor:
        """Compute one token of each sequence; return logits (rows, vocab)."""
        self._segments.set((item.cache.adapter, 1, 1) for item in items)
        caches = [_recurrent(item) for item in items]
        segments = [Segment(c, row, 1, c.length) for row, c in enumerate(caches)]
        tokens = [list(item.token_ids) for item in items]
        step = PackedStep(segments, self._indices(tokens), latent=self._layout.latent)
        logits = self._forward(caches, step, tokens)
        for cache, item in zip(caches, items, strict=True):
            cache.append(item.token_ids)
        return logits[:, -1]

    def _prompt(self, item: BatchItem) -> list[Tensor]:
        """Compute several tokens of one sequence; return the requested logits."""
        self._segments.set_all(item.cache.adapter)
        cache = _recurrent(item)
        count = len(item.token_ids) - sum(item.branches)
        indices = [index % len(item.token_ids) for index in item.logit_indices]
        own, results = [index for index in indices if index < count], []
        for start, size in self._pieces(cache, count):
            kept = [index - start for index in own if start <= index < start + size]
            logits = self._continue(cache, list(item.token_ids[start : start + size]), kept)
            if kept:
                results.append(logits)
        if item.branches:
            compute = self._single_branches if self._whole(cache) else self._branches
            results.append(compute(cache, item, count, indices[len(own) :]))
        return results

    def _whole(self, cache: RecurrentCache) -> bool:
        """Whether the model can continue from the state of a cache by one token only."""
        return self._layout.shape.whole_prompts and cache.length > 0

    def _pieces(self, cache: RecurrentCache, count: int) -> list[tuple[int, int]]:
        """Return start and size of the parts in which `count` tokens are computed."""
        if self._whole(cache):
            return [(start, 1) for start in range(count)]
        return [(0, count)] if count else []

    def _continue(self, cache: RecurrentCache, tokens: list[int], kept: list[int]) -> Tensor:
        """Compute tokens of one sequence; return the logits (kept, vocab)."""
        segment = Segment(cache, 0, len(tokens), cache.length)
        step = PackedStep([segment], self._indices([tokens]), latent=self._layout.latent)
        logits = self._forward([cache], step, [tokens], kept)[0]
        cache.append(tokens)
        return logits

    def _single_branches(
        self, cache: RecurrentCache, item: BatchItem, start: int, indices: Sequence[int]
    ) -> Tensor:
        """Compute the branches of a prompt as sequences of their own, token by token."""
        parts = []
        for length in item.branches:
            branch = RecurrentCache(self._layout.shape, cache.adapter)
            branch.resize(cache.length + length)
            branch.copy_prefix(cache, cache.length)
            for index in range(start, start + length):
                logits = self._continue(branch, [item.token_ids[index]], [0])
                if index in indices:
                    parts.append(logits)
            start += length
        return torch.cat(parts)

    def _branches(
        self, cache: RecurrentCache, item: BatchItem, start: int, indices: Sequence[int]
    ) -> Tensor:
        """Compute the branches of a prompt as rows; return the requested logits."""
        branches = []
        for length in item.branches:
            branches.append(list(item.token_ids[start : start + length]))
            start += length
        rows = self._indices(branches)
        segment = Segment(cache, 0, sum(item.branches), cache.length, item.branches)
        step = PackedStep([segment], rows, latent=self._layout.latent)
        logits = self._forward([cache] * len(branches), step, branches, keep=None)
        first = len(item.token_ids) - sum(item.branches)
        wanted = torch.tensor([index - first for index in indices], device=logits.device)
        return logits.flatten(0, 1).index_select(0, rows.index_select(0, wanted.long()))

    def _hidden(self, item: BatchItem) -> Tensor:
        self._segments.set_all(item.cache.adapter)
        cache, tokens = _recurrent(item), list(item.token_ids)
        step = PackedStep(
            [Segment(cache, 0, len(tokens), cache.length)],
            self._indices([tokens]),
            latent=self._layout.latent,
        )
        with current_step(step):
            inputs, model_cache = self._inputs([cache], [tokens])
            states = last_hidden_state(self.model, inputs)[0]
        self._store([cache], model_cache)
        cache.append(tokens)
        return states

    def _indices(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the indices of the tokens of `rows` in the flattened, padded batch."""
        width = max(map(len, rows))
        flat = [width * row + at for row, ids in enumerate(rows) for at in range(len(ids))]
        return torch.tensor(flat, device=self.model.device)

    def _forward(
        self,
        caches: Sequence[RecurrentCache],
        step: PackedStep,
        tokens: Sequence[list[int]],
        keep: Sequence[int] | None = (),
    ) -> Tensor:
        """Run the model on rows of tokens; return logits (rows, kept tokens, vocab).

        Args:
            caches: of each row; the same for all branches of one prompt, whose states are dropped.
            step: the segments of the rows.
            tokens: of each row.
            keep: tokens with logits; none: the last, `None`: all.
        """
        is_branches = len(set(map(id, caches))) < len(caches) or step.segments[0].branches != ()
        inputs, model_cache = self._inputs(caches, tokens, share=not is_branches)
        kept: Any = 0 if keep is None else 1
        if keep:
            kept = torch.tensor(list(keep), device=self.model.device)
        with current_step(step):
            logits: Tensor = self.model(**inputs, logits_to_keep=kept).logits
        if not is_branches:
            self._store(caches, model_cache)
        return logits

    def _inputs(
        self,
        caches: Sequence[RecurrentCache],
        tokens: Sequence[list[int]],
        *,
        share: bool = True,
    ) -> tuple[dict[str, Any], Any]:
        device = self.model.device
        width = max(map(len, tokens))
        ids = [row + [0] * (width - len(row)) for row in tokens]
        positions = [list(range(c.length, c.length + width)) for c in caches]
        model_cache = self._model_cache(caches, share=share)
        inputs = {
            "input_ids": torch.tensor(ids, device=device),
            "position_ids": torch.tensor(positions, device=device),
        }
        return inputs | self._layout.cache_arguments(model_cache), model_cache

    def _model_cache(self, caches: Sequence[RecurrentCache], *, share: bool) -> Any:
        """Return a cache of Transformers with the states of the rows."""
        states = [cache.state for cache in caches]
        if share and self._last is not None:
            model_cache, _, own = self._last
            if len(own) == len(states) and all(map(operator.is_, own, states)):
                _invalidate(caches)
                return model_cache
        model_cache = self._layout.step_cache(self.model)
        known = [state for state in states if state is not None]
        if known:
            assert len(known) == len(states)
            # Copies: the model changes states in place.
            rows = tuple(torch.cat(parts) for parts in zip(*known, strict=True))
            set_states(model_cache, self._kinds, rows)
        if share:
            _invalidate(caches)
        return model_cache

    def _store(self, caches: Sequence[RecurrentCache], model_cache: Any) -> None:
        """Give each sequence its row of the states."""
        if not self._kinds:
            self._kinds = state_kinds(model_cache)
        states = get_states(model_cache)
        if self._last is not None and self._last[0] is model_cache:
            before = self._last[1]
            if len(before) == len(states) and all(map(operator.is_, before, states)):
                return  # changed in place: the rows are views of them
        own = []
        for row, cache in enumerate(caches):
            cache.state = tuple(state[row : row + 1] for state in states)
            own.append(cache.state)
        self._last = model_cache, states, own

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Add an adapter; see `Forward.put_adapter`."""
        self._adapters.put(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Remove an adapter."""
        self._adapters.drop(key)


def _is_row(item: BatchItem) -> bool:
    """Whether an item is one token of a sequence that has a state."""
    return len(item.token_ids) == 1 and not item.branches and item.cache.length > 0


def _recurrent(item: BatchItem) -> RecurrentCache:
    assert isinstance(item.cache, RecurrentCache)
    return item.cache


def _invalidate(caches: Sequence[RecurrentCache]) -> None:
    for cache in caches:
        cache.invalidate()
