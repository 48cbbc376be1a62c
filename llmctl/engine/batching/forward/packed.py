"""Runs the model over the new tokens of many rows at once; returns the logits that are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llmctl.engine.batching.forward import attention
from llmctl.engine.batching.forward.attention import PackedStep, Segment
from llmctl.engine.batching.forward.bucket_size import bucket_size
from llmctl.engine.batching.forward.lora import AdapterSegments, HookedAdapters, LoraAdapter
from llmctl.engine.batching.kv import KVCache, KVShape

PREFILL_CHUNK_TOKENS = 512
"""Prompt tokens per step while nobody decodes."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """New tokens of one row: they are appended to its cache, which must have room for them."""

    cache: KVCache
    token_ids: Sequence[int]
    logits: tuple[int, ...] = (-1,)
    """For which of the new tokens logits are wanted, as indices into `token_ids`."""
    branches: tuple[int, ...] = ()
    """Lengths of alternative endings, see `Segment`; the cache forgets them after the step."""


class Forward(Protocol):
    """Computes one step."""

    def run(self, work: Sequence[BatchItem]) -> Tensor:
        """Compute the new tokens and note them in their caches.

        Returns:
            Logits (sum of the wanted, vocab), in the order of `work`, in the model's type.
        """

    def states(self, work: Sequence[BatchItem]) -> Tensor:
        """Compute the new tokens like `run`.

        Returns:
            What the head would see of each of them, (tokens, hidden).
        """

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter from the next step on, for rows whose cache names its key.

        Rows of one adapter are best next to each other.
        """

    def drop_adapter(self, key: str) -> None:
        """Forget an adapter."""


class PackedForward:
    """The model's own forward pass over packed rows. Used by the engine thread alone."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._rows = AdapterSegments()
        self._adapters = HookedAdapters(model, self._rows)
        attention.register()
        model.set_attn_implementation(attention.NAME)

    @torch.inference_mode()
    def run(self, work: Sequence[BatchItem]) -> Tensor:
        """Compute one step; see `Forward.run`."""
        inputs, wanted = self._inputs(work)
        kept = torch.tensor(wanted, dtype=torch.long, device=self.model.device)
        logits: Tensor = self.model(**inputs, logits_to_keep=kept).logits[0]
        append_computed_tokens(work)
        return logits

    @torch.inference_mode()
    def states(self, work: Sequence[BatchItem]) -> Tensor:
        """Compute one step up to the head; see `Forward.states`."""
        inputs, _ = self._inputs(work)
        states: Tensor = self.model.base_model(**inputs).last_hidden_state[0]
        append_computed_tokens(work)
        return states[: sum(len(item.token_ids) for item in work)]

    def _inputs(self, work: Sequence[BatchItem]) -> tuple[dict[str, Any], list[int]]:
        step, token_ids, positions, wanted = pack(work)
        record_adapter_segments(self._rows, work)
        device = self.model.device
        if device.type == "cpu":
            filler = [0] * (bucket_size(len(token_ids)) - len(token_ids))
            token_ids, positions = token_ids + filler, positions + filler
        inputs = {
            "input_ids": torch.tensor([token_ids], device=device),
            "position_ids": torch.tensor([positions], device=device),
            "use_cache": False,
            "packed": step,
        }
        return inputs, wanted

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter; see `Forward.put_adapter`."""
        self._adapters.put(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Forget an adapter."""
        self._adapters.drop(key)


def pack(work: Sequence[BatchItem]) -> tuple[PackedStep, list[int], list[int], list[int]]:
    """Lay rows end to end.

    Returns:
        The step, the token ids, their positions within their rows, and the indices of the tokens
        whose logits are wanted.
    """
    segments: list[Segment] = []
    token_ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for item in work:
        start, count, past = len(token_ids), len(item.token_ids), item.cache.length
        segment = Segment(item.cache, start, count, past, item.branches)
        segments.append(segment)
        token_ids.extend(item.token_ids)
        positions.extend(segment.positions)
        wanted.extend(start + index % count for index in item.logits)
    return PackedStep(segments), token_ids, positions, wanted


def record_adapter_segments(rows: AdapterSegments, work: Sequence[BatchItem]) -> None:
    """Note which rows of the step are under which adapter."""
    rows.note((item.cache.adapter, len(item.token_ids), len(item.logits)) for item in work)


def append_computed_tokens(work: Sequence[BatchItem]) -> None:
    """Note in each cache what the step has put there."""
    for item in work:
        trunk = len(item.token_ids) - sum(item.branches)
        item.cache.token_ids.extend(item.token_ids[:trunk])


@torch.inference_mode()
def kv_shape(model: Any) -> KVShape | None:
    """Return what a token needs in the cache, by looking at what the model puts there.

    Returns:
        `None` if layers differ, keys and values differ, or there is state of another kind.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    probe = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    output = model(input_ids=probe, use_cache=True)
    # Transformers 5.24 has given it another name.
    cache = output["cache"] if "cache" in output else output.get("past_key_values")
    layers = getattr(cache, "layers", ())
    if not layers or any(type(x) not in (DynamicLayer, DynamicSlidingWindowLayer) for x in layers):
        return None
    shapes = {tuple(part.shape) for layer in layers for part in (layer.keys, layer.values)}
    if len(shapes) != 1:
        return None
    _, kv_heads, _, head_dim = shapes.pop()
    return KVShape(len(layers), kv_heads, head_dim, layers[0].keys.dtype, layers[0].keys.device)
