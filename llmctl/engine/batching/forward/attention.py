"""Attention of many rows in one step: their tokens packed end to end, no padding, no mask.

All rows' new tokens lie in one sequence, so that the linear layers see one big matrix; only here
does each row look at its own keys and values. Registered in Transformers under `NAME`, so every
model that takes its attention from Transformers' interface can run this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn

from llmctl.engine.batching.forward.bucket_size import bucket_size, query_bucket_size
from llmctl.engine.batching.kv import KVCache, KVReader, KVWriter

NAME = "llmctl_packed"
_QUERY_BLOCK, _CPU_QUERY_BLOCK = 256, 128
"""Queries of a prompt that are scored at once: more computes more of what is masked away, and
scores that do not fit the processor's caches (docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The new tokens of one row within a packed step."""

    cache: KVCache
    start: int
    """Where they begin in the packed sequence."""
    count: int
    past: int
    """Tokens of the row that are in its cache already."""
    branches: tuple[int, ...] = ()
    """Lengths of alternative endings, side by side at the end: each sees itself and what comes
    before all of them, and none sees another."""

    @property
    def positions(self) -> list[int]:
        """Position of every new token within its sequence; alternatives have the same ones."""
        trunk = self.count - sum(self.branches)
        fork = self.past + trunk
        listed = list(range(self.past, fork))
        for length in self.branches:
            listed.extend(range(fork, fork + length))
        return listed


@dataclass(slots=True)
class PackedStep:
    """Which tokens of a packed sequence belong to which row, in order and without gaps."""

    segments: Sequence[Segment]
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _writers: list[KVWriter] = field(default_factory=list)
    _readers: dict[int | None, list[KVReader]] = field(default_factory=dict)

    def split(self, new: Tensor) -> tuple[Tensor, ...]:
        """Cut (heads, tokens, head_dim) into the segments' own; filler after them is left out."""
        counts = [segment.count for segment in self.segments]
        filler = new.shape[1] - sum(counts)
        parts: tuple[Tensor, ...] = torch.split(new, [*counts, filler], dim=1)
        return parts[: len(counts)]

    def writers(self) -> list[KVWriter]:
        """Return what writes each segment's new keys and values, made once for all layers."""
        if not self._writers:
            self._writers = [s.cache.writer(s.past, s.count) for s in self.segments]
        return self._writers

    def readers(self, window: int | None) -> list[KVReader]:
        """Return what reads all that each segment may see, made once for all layers."""
        if window not in self._readers:
            self._readers[window] = [_reader(segment, window) for segment in self.segments]
        return self._readers[window]

    def mask(self, query: Tensor, segment: Segment, begin: int, size: int, window: Any) -> Tensor:
        """Return an additive mask, made once for all layers.

        Args:
            query: gives type and device.
            begin: first of the segment's tokens that ask; `size` of them do.
            window: how many tokens a token sees, `None` for all.

        Returns:
            (size, past + begin + size), or with branches (size, past + count); on a CPU both
            rounded up, as far as the cache has room.
        """
        key = (segment.past + begin, size, window, segment.start if segment.branches else None)
        if key not in self._masks:
            mask = _additive_mask(query, segment, begin, size, window)
            if query.device.type == "cpu":
                rows, columns = mask.shape
                wider = min(bucket_size(columns), segment.cache.capacity) - columns
                mask = F.pad(mask, (0, wider), value=float("-inf"))
                # What nobody asked may see anything: a row that sees nothing would be NaN.
                mask = F.pad(mask, (0, 0, 0, query_bucket_size(rows) - rows))
            self._masks[key] = mask
        return self._masks[key]


def _additive_mask(
    query: Tensor, segment: Segment, begin: int, size: int, window: int | None
) -> Tensor:
    total = segment.past + (segment.count if segment.branches else begin + size)
    seen = torch.ones(size, total, dtype=torch.bool).tril(segment.past + begin)
    fork = segment.past + segment.count - sum(segment.branches)
    at = fork
    for length in segment.branches:
        # Rows of this branch see nothing between the fork and its own beginning.
        first = at - segment.past - begin
        seen[max(first, 0) : max(first + length, 0), fork:at] = False
        at += length
    if window is not None:
        positions = torch.tensor([*range(segment.past), *segment.positions])
        own = positions[segment.past + begin : segment.past + begin + size]
        seen &= positions[None, :total] > own[:, None] - window
    mask = torch.zeros(size, total, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
    return mask.to(query.device)


def _reader(segment: Segment, window: int | None) -> KVReader:
    total = segment.past + segment.count
    if segment.count == 1:
        return segment.cache.reader(0 if window is None else max(total - window, 0), total)
    return segment.cache.reader(0, min(bucket_size(total), segment.cache.capacity))


def register() -> None:
    """Make the attention known to Transformers. No mask function: it then passes no mask."""
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
    """Transformers' attention interface; (1, heads, tokens, head_dim) in, (1, tokens, ...) out."""
    assert attention_mask is None
    layer: Any = module.layer_idx
    output = attend(packed, layer, query[0], key[0], value[0], scaling, sliding_window)
    filler = query.shape[2] - output.shape[0]
    return F.pad(output, (0, 0, 0, 0, 0, filler)).unsqueeze(0), None


def attend(
    step: PackedStep,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Store the new keys and values, and let every row attend to its own.

    Args:
        query: (heads, tokens, head_dim).
        key: (kv_heads, tokens, head_dim), like `value`; heads is a multiple of kv_heads.
        scaling: of the scores, by default 1 / sqrt(head_dim).
        window: how many tokens a token sees, itself included; `None` for all.

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
            # Query heads that share a key head stand in for a sequence: nothing is repeated.
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
    """Attention of several new tokens of one row, causal.

    On a CPU plain matrix products in blocks of queries are twice as fast as the fused kernel
    (docs/performance.md); elsewhere the fused kernel is the fast one.

    Args:
        query: (heads, count, head_dim).
        keys: (kv_heads, capacity, head_dim), like `values`.
    """
    heads, count, dim = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    fork = segment.past + count - sum(segment.branches)
    outputs = []
    most = _CPU_QUERY_BLOCK if query.device.type == "cpu" else _QUERY_BLOCK
    for begin in range(0, count, most):
        size = min(most, count - begin)
        mask = step.mask(query, segment, begin, size, window)
        rows, total = mask.shape
        block = query.narrow(1, begin, size)
        seen_keys, seen_values = keys.narrow(1, 0, total), values.narrow(1, 0, total)
        if query.device.type == "cpu":
            # The scale on the queries, and the mask on what it can hide: two passes over the scores
            # less.
            asked = F.pad(block * scale, (0, 0, 0, rows - size))
            asked = asked.reshape(kv_heads, group * rows, dim)
            scores = torch.matmul(asked, seen_keys.transpose(1, 2))
            scores = scores.view(kv_heads, group, rows, total)
            open_to_all = 0 if window is not None else min(segment.past + begin, fork)
            scores[..., open_to_all:].add_(mask[:, open_to_all:])
            weights = scores.softmax(-1).view(kv_heads, group * rows, total)
            out = torch.matmul(weights, seen_values).view(heads, rows, dim)[:, :size]
            del scores, weights  # or the next block's stand beside them
        else:
            # With a mask, `enable_gqa` would fall back to the kernel that keeps all scores.
            out = F.scaled_dot_product_attention(
                block.unsqueeze(0),
                seen_keys.repeat_interleave(group, 0).unsqueeze(0),
                seen_values.repeat_interleave(group, 0).unsqueeze(0),
                attn_mask=mask,
                scale=scale,
            )[0]
        outputs.append(out.transpose(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
