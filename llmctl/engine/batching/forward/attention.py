"""Attention over a packed batch: the new tokens of all sequences end to end, without padding.

The linear layers see one large matrix; here each sequence attends to its own keys and values. The
function is registered in Transformers under `NAME`, so every model that uses Transformers'
attention interface can run packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

from llmctl.engine.batching.forward.bucket_size import bucket_size, query_bucket_size
from llmctl.engine.batching.kv import KVCache, KVReader, KVWriter

NAME = "llmctl_packed"
_QUERY_BLOCK, _CPU_QUERY_BLOCK = 256, 128
"""Queries of a prompt per block. Larger blocks compute more scores that are masked, and scores that
do not fit the processor's caches (docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The new tokens of one sequence within a packed step."""

    cache: KVCache
    start: int
    """Index of the first of them in the packed sequence."""
    count: int
    past: int
    """Tokens of the sequence that are in its cache already."""
    branches: tuple[int, ...] = ()
    """Lengths of alternative continuations at the end of the new tokens. Each attends to itself and
    to the tokens before the first branch, not to the other branches."""

    @property
    def positions(self) -> list[int]:
        """Position of each new token within its sequence; all branches begin at the same one."""
        positions = list(range(self.past, self.branch_start))
        for length in self.branches:
            positions.extend(range(self.branch_start, self.branch_start + length))
        return positions

    @property
    def branch_start(self) -> int:
        """Tokens of the sequence before the branches; without branches its whole length."""
        return self.past + self.count - sum(self.branches)


@dataclass(slots=True)
class PackedStep:
    """The segments of a packed batch, in order and without gaps; makes masks once per step."""

    segments: Sequence[Segment]
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _writers: list[KVWriter] = field(default_factory=list)
    _readers: dict[int | None, list[KVReader]] = field(default_factory=dict)

    def split(self, new: Tensor) -> tuple[Tensor, ...]:
        """Split (heads, tokens, head_dim) by segment; padding at the end is left out."""
        counts = [segment.count for segment in self.segments]
        padding = new.shape[1] - sum(counts)
        parts: tuple[Tensor, ...] = torch.split(new, [*counts, padding], dim=1)
        return parts[: len(counts)]

    def writers(self) -> list[KVWriter]:
        """Return a cache writer for each segment, made once for all layers."""
        if not self._writers:
            self._writers = [s.cache.writer(s.past, s.count) for s in self.segments]
        return self._writers

    def readers(self, window: int | None) -> list[KVReader]:
        """Return a cache reader for each segment, made once for all layers."""
        if window not in self._readers:
            self._readers[window] = [_reader(segment, window) for segment in self.segments]
        return self._readers[window]

    def mask(self, query: Tensor, segment: Segment, begin: int, size: int, window: Any) -> Tensor:
        """Return an additive mask, made once for all layers.

        Args:
            query: gives type and device.
            segment: the queries are tokens of this segment.
            begin: index of the first query within the segment.
            size: number of queries.
            window: tokens that a token attends to, itself included; `None` for all.

        Returns:
            (size, past + begin + size), or with branches (size, past + count). On a CPU both are
            rounded up to a bucket, as far as the cache has capacity.
        """
        key = (segment.past + begin, size, window, segment.start if segment.branches else None)
        if key not in self._masks:
            mask = _additive_mask(query, segment, begin, size, window)
            if query.device.type == "cpu":
                rows, columns = mask.shape
                wider = min(bucket_size(columns), segment.cache.capacity) - columns
                mask = F.pad(mask, (0, wider), value=float("-inf"))
                # Padding queries attend to all keys: the softmax of a fully masked row is NaN.
                mask = F.pad(mask, (0, 0, 0, query_bucket_size(rows) - rows))
            self._masks[key] = mask
        return self._masks[key]


def _additive_mask(
    query: Tensor, segment: Segment, begin: int, size: int, window: int | None
) -> Tensor:
    total = segment.past + (segment.count if segment.branches else begin + size)
    visible = torch.ones(size, total, dtype=torch.bool).tril(segment.past + begin)
    start = segment.branch_start
    at = start
    for length in segment.branches:
        # A branch does not attend to the branches before it.
        first = at - segment.past - begin
        visible[max(first, 0) : max(first + length, 0), start:at] = False
        at += length
    if window is not None:
        positions = torch.tensor([*range(segment.past), *segment.positions])
        own = positions[segment.past + begin : segment.past + begin + size]
        visible &= positions[None, :total] > own[:, None] - window
    mask = torch.zeros(size, total, dtype=query.dtype).masked_fill_(~visible, float("-inf"))
    return mask.to(query.device)


def _reader(segment: Segment, window: int | None) -> KVReader:
    total = segment.past + segment.count
    if segment.count == 1:
        return segment.cache.reader(0 if window is None else max(total - window, 0), total)
    return segment.cache.reader(0, min(bucket_size(total), segment.cache.capacity))


def register() -> None:
    """Register the attention in Transformers, without a mask function: it then passes no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention_forward)


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Implement Transformers' interface: (1, heads, tokens, head_dim) to (1, tokens, ...)."""
    assert attention_mask is None
    layer: Any = module.layer_idx
    output = attend(packed, layer, query[0], key[0], value[0], scaling, sliding_window)
    padding = query.shape[2] - output.shape[0]
    return F.pad(output, (0, 0, 0, 0, 0, padding)).unsqueeze(0), None


def attend(
    step: PackedStep,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Write the new keys and values to the caches and compute each sequence's attention.

    Args:
        step: the packed step.
        layer: index of the layer.
        query: (heads, tokens, head_dim).
        key: (kv_heads, tokens, head_dim); heads is a multiple of kv_heads.
        value: like `key`.
        scaling: of the scores, by default 1 / sqrt(head_dim).
        window: tokens that a token attends to, itself included; `None` for all.

    Returns:
        (tokens, heads, head_dim).
    """
    heads, _, dim = query.shape
    kv_heads = key.shape[0]
    scale = dim**-0.5 if scaling is None else scaling
    outputs = []
    parts = zip(step.split(query), step.split(key), step.split(value), strict=True)
    writers, readers = step.writers(), step.readers(window)
    for segment, (own, new_key, new_value), write, read in zip(
        step.segments, parts, writers, readers, strict=True
    ):
        write(layer, new_key, new_value)
        keys, values = read(layer)
        if segment.count == 1:
            # Query heads that share a key head take the place of the tokens: no key is repeated.
            out = F.scaled_dot_product_attention(
                own.reshape(1, kv_heads, heads // kv_heads, dim), keys, values, scale=scale
            )
            outputs.append(out.view(1, heads, dim))
        else:
            outputs.append(_prefill(step, segment, own, keys[0], values[0], scale, window))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _prefill(
    step: PackedStep,
    segment: Segment,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """Compute causal attention of several new tokens of one sequence.

    On a CPU plain matrix products in blocks of queries are twice as fast as the fused kernel
    (docs/performance.md); elsewhere the fused kernel is faster.

    Args:
        step: holds the masks.
        segment: the sequence.
        query: (heads, count, head_dim).
        keys: (kv_heads, capacity, head_dim).
        values: like `keys`.
        scale: of the scores.
        window: as for `attend`.

    Returns:
        (count, heads, head_dim).
    """
    heads, count, dim = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    outputs = []
    block_size = _CPU_QUERY_BLOCK if query.device.type == "cpu" else _QUERY_BLOCK
    for begin in range(0, count, block_size):
        size = min(block_size, count - begin)
        mask = step.mask(query, segment, begin, size, window)
        rows, total = mask.shape
        block = query.narrow(1, begin, size)
        visible_keys, visible_values = keys.narrow(1, 0, total), values.narrow(1, 0, total)
        if query.device.type == "cpu":
            # Scaling the queries and masking only the columns that need it saves two passes over
            # the scores.
            scaled = F.pad(block * scale, (0, 0, 0, rows - size))
            scaled = scaled.reshape(kv_heads, group * rows, dim)
            scores = torch.matmul(scaled, visible_keys.transpose(1, 2))
            scores = scores.view(kv_heads, group, rows, total)
            unmasked = 0 if window is not None else min(segment.past + begin, segment.branch_start)
            scores[..., unmasked:].add_(mask[:, unmasked:])
            weights = scores.softmax(-1).view(kv_heads, group * rows, total)
            out = torch.matmul(weights, visible_values).view(heads, rows, dim)[:, :size]
            del scores, weights  # before the next block allocates its own
        else:
            # With a mask, `enable_gqa` falls back to the kernel that materialises all scores.
            out = F.scaled_dot_product_attention(
                block.unsqueeze(0),
                visible_keys.repeat_interleave(group, 0).unsqueeze(0),
                visible_values.repeat_interleave(group, 0).unsqueeze(0),
                attn_mask=mask,
                scale=scale,
            )[0]
        outputs.append(out.transpose(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
