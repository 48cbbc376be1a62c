"""The forward pass over a packed batch, and the model's own implementation of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llmctl.engine.auto_model import model_body
from llmctl.engine.batching.bucket_size import bucket_size
from llmctl.engine.batching.forward import attention
from llmctl.engine.batching.forward.cache_layout import CacheLayout
from llmctl.engine.batching.forward.lora import AdapterSegments, HookedAdapters, LoraAdapter
from llmctl.engine.batching.forward.step import PackedStep, Segment, current_step
from llmctl.engine.batching.kv_cache import KVCache

PREFILL_CHUNK_TOKENS = 512
"""Prefill tokens per step while no sequence decodes."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """New tokens of one sequence, to be appended to its cache, which must have space for them."""

    cache: KVCache
    token_ids: Sequence[int]
    logit_indices: tuple[int, ...] = (-1,)
    """The new tokens for which logits are computed, as indices into `token_ids`."""
    branches: tuple[int, ...] = ()
    """Lengths of alternative continuations, see `Segment`; they are not added to the cache."""


class Forward(Protocol):
    """Runs one step of the model."""

    def run(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute the new tokens and append them to their caches.

        Returns:
            Logits (requested tokens, vocab) in the order of the batch, in the model's type.
        """

    def states(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute the new tokens like `run`.

        Returns:
            The hidden states before the head, (tokens, hidden).
        """

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Add an adapter, for sequences whose cache names its key.

        Sequences of one adapter should be adjacent in a batch.
        """

    def drop_adapter(self, key: str) -> None:
        """Remove an adapter."""


class PackedForward:
    """Transformers' forward pass over a packed batch. Used by the engine thread alone.

    Args:
        model: of Transformers.
        layout: of its cache.
    """

    def __init__(self, model: Any, layout: CacheLayout) -> None:
        self.model = model
        self._layout = layout
        self._segments = AdapterSegments()
        self._adapters = HookedAdapters(model, self._segments)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        # Only layers that cache other tensors, or share them, need Transformers' cache.
        self._cache = None if layout.is_plain else layout.step_cache(model)

    @torch.inference_mode()
    def run(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute one step; see `Forward.run`."""
        step, inputs, indices = self._inputs(batch)
        kept = torch.tensor(indices, dtype=torch.long, device=self.model.device)
        with current_step(step):
            logits: Tensor = self.model(**inputs, logits_to_keep=kept).logits[0]
        if len(logits) != len(indices):  # some models compute all of them (VideoLLaMA 3)
            logits = logits.index_select(0, kept)
        append_computed_tokens(batch)
        return logits

    @torch.inference_mode()
    def states(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute one step up to the head; see `Forward.states`."""
        step, inputs, _ = self._inputs(batch)
        with current_step(step):
            states: Tensor = last_hidden_state(self.model, inputs)[0]
        append_computed_tokens(batch)
        return states[: sum(len(item.token_ids) for item in batch)]

    def _inputs(self, batch: Sequence[BatchItem]) -> tuple[PackedStep, dict[str, Any], list[int]]:
        step, token_ids, positions, indices = pack(batch, self._layout.latent)
        record_adapter_segments(self._segments, batch)
        device = self.model.device
        if device.type == "cpu":
            padding = [0] * (bucket_size(len(token_ids)) - len(token_ids))
            token_ids, positions = token_ids + padding, positions + padding
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([token_ids], device=device),
            "position_ids": torch.tensor([positions], device=device),
        }
        return step, inputs | self._layout.cache_arguments(self._cache), indices

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Add an adapter; see `Forward.put_adapter`."""
        self._adapters.put(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Remove an adapter."""
        self._adapters.drop(key)


def last_hidden_state(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Return the states (rows, tokens, hidden) before the head."""
    states: Tensor = model_body(model)(**inputs)[0]
    return states


def pack(
    batch: Sequence[BatchItem], latent: frozenset[int] = frozenset()
) -> tuple[PackedStep, list[int], list[int], list[int]]:
    """Put the new tokens of all sequences end to end.

    Returns:
        The step, the token ids, their positions within their sequences, and the indices of the
        tokens for which logits are requested.
    """
    segments: list[Segment] = []
    token_ids: list[int] = []
    positions: list[int] = []
    indices: list[int] = []
    for item in batch:
        start, count, past = len(token_ids), len(item.token_ids), item.cache.length
        segment = Segment(item.cache, start, count, past, item.branches)
        segments.append(segment)
        token_ids.extend(item.token_ids)
        positions.extend(segment.positions)
        indices.extend(start + index % count for index in item.logit_indices)
    return PackedStep(segments, latent=latent), token_ids, positions, indices


def record_adapter_segments(segments: AdapterSegments, batch: Sequence[BatchItem]) -> None:
    """Record which parts of the step use which adapter."""
    segments.set(
        (item.cache.adapter, len(item.token_ids), len(item.logit_indices)) for item in batch
    )


def append_computed_tokens(batch: Sequence[BatchItem]) -> None:
    """Add the computed tokens to the caches, branches left out."""
    for item in batch:
        kept = len(item.token_ids) - sum(item.branches)
        item.cache.append(item.token_ids[:kept])
