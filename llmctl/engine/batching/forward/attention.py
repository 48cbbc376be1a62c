"""Attention over a packed batch: the new tokens of all sequences end to end, without padding.

The linear layers see one large matrix; here each sequence attends to its own keys and values. The
function is registered in Transformers under `NAME`, so every model that uses Transformers'
attention interface can run packed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

from llmctl.engine.batching.forward.step import (
    PackedStep,
    Scores,
    Segment,
    flatten,
    step_of_thread,
)

NAME = "llmctl_packed"
_QUERY_BLOCK, _CPU_QUERY_BLOCK = 256, 128
"""Queries of a prompt per block. Larger blocks compute more scores that are masked, and scores that
do not fit the processor's caches (docs/performance.md)."""

_KEY_BLOCK = 64
"""Keys before a window are left out in multiples of it, so that few sizes occur."""


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
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Implement Transformers' interface: (rows, heads, tokens, head_dim) to (rows, tokens, ...)."""
    assert attention_mask is None
    step = step_of_thread()
    layer = layer_index(module, step.layer)
    how = Scores(
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        _window(module, layer) if sliding_window is None else sliding_window,
        _chunk_size(module, layer),
        softcap,
        s_aux,
    )
    own: Any = module
    if getattr(own, "attn_temperature_tuning", False) and not own.use_rope:
        query = query * step.temperature(query, own.floor_scale, own.attn_scale)
    rows, heads, tokens, _dim = query.shape
    source = step.source(layer, key)
    is_latent = layer in step.latent  # its keys and values are those of whole sequences
    keys, values = (part[0] if is_latent else flatten(part, step.rows) for part in (key, value))
    flat = flatten(query, step.rows)
    output = attend(step, source, flat, keys, values, how, write=source == layer)
    if step.rows is None:
        output = F.pad(output, (0, 0, 0, 0, 0, tokens - output.shape[0]))
    elif len(step.rows) == rows * tokens:
        output = output.reshape(rows, tokens, heads, -1)
    else:
        padded = output.new_zeros(rows * tokens, *output.shape[1:])
        output = padded.index_copy_(0, step.rows, output)
    return output.reshape(rows, tokens, heads, -1).contiguous(), None


def layer_index(module: Any, updated: int) -> int:
    """Return the index of an attention layer.

    Args:
        module: the layer; one that stands in several places has no index, or -1 (Zamba).
        updated: index of the layer whose cache was updated last.
    """
    index: int | None = module.layer_idx
    return updated if index is None or index < 0 else index


def _layer_type(module: Any, layer: int) -> str | None:
    kinds: Sequence[str] | None = getattr(getattr(module, "config", None), "layer_types", None)
    return None if kinds is None else kinds[layer]


def _window(module: Any, layer: int) -> int | None:
    """Return the window of a layer that leaves it to the mask, from its configuration."""
    config = getattr(module, "config", None)
    kind = _layer_type(module, layer)
    if kind is None:
        has_window = getattr(config, "use_sliding_window", True)
    else:
        has_window = kind in ("sliding_attention", "hybrid_sliding")
    return getattr(config, "sliding_window", None) if has_window else None


def _chunk_size(module: Any, layer: int) -> int | None:
    """Return the size of the chunks of a layer with chunked attention (Llama 4)."""
    if _layer_type(module, layer) != "chunked_attention":
        return None
    size: int = module.config.attention_chunk_size
    return size


def attend(
    step: PackedStep,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    how: Scores,
    *,
    write: bool = True,
) -> Tensor:
    """Write the new keys and values to the caches and compute each sequence's attention.

    Args:
        step: the packed step.
        layer: index of the layer.
        query: (heads, tokens, head_dim).
        key: (kv_heads, tokens, head_dim); heads is a multiple of kv_heads. Where the layer caches
            other tensors than keys, all keys of all segments one after the other.
        value: like `key`; its head_dim may differ.
        how: scaling, window and further properties of the scores.
        write: whether the keys are new; otherwise an earlier layer has written them.

    Returns:
        (tokens, heads, head_dim of the values).
    """
    heads, _, dim = query.shape
    kv_heads = key.shape[0]
    outputs = []
    is_latent = layer in step.latent
    if not is_latent and write:
        parts = zip(step.split(key), step.split(value), step.writers(), strict=True)
        for new_key, new_value, write_new in parts:
            write_new(layer, new_key, new_value)
    readers = step.latent_readers(key, value) if is_latent else step.readers(how)
    for segment, own, read in zip(step.segments, step.split(query), readers, strict=True):
        keys, values = read(layer)
        if segment.count == 1:
            if is_latent and (first := how.first_visible(segment.past)):
                keys, values = keys[:, :, first:], values[:, :, first:]
            # Query heads that share a key head take the place of the tokens: no key is repeated.
            shared = own.reshape(1, kv_heads, heads // kv_heads, dim)
            if how.is_plain:
                out = F.scaled_dot_product_attention(shared, keys, values, scale=how.scaling)
            else:
                scores = torch.matmul(shared * how.scaling, keys.transpose(2, 3))
                out = torch.matmul(_weights(scores, how), values)
            outputs.append(out.reshape(1, heads, -1))
        else:
            outputs.append(_prefill(step, segment, own, keys[0], values[0], how))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _weights(scores: Tensor, how: Scores, mask: Tensor | None = None) -> Tensor:
    """Return the softmax of the scores (..., kv_heads, group * rows, keys), with cap and sinks."""
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    if mask is not None:
        scores = scores + mask
    if how.sinks is None:
        return scores.softmax(-1)
    kv_heads, grouped = scores.shape[-3:-1]
    per_head = how.sinks.reshape(kv_heads, -1)
    sinks = per_head.repeat_interleave(grouped // per_head.shape[1], 1).unsqueeze(-1)
    both = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], dim=-1)
    return both.float().softmax(-1).to(scores.dtype)[..., :-1]


def _prefill(
    step: PackedStep,
    segment: Segment,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    how: Scores,
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
        how: as for `attend`.

    Returns:
        (count, heads, head_dim of the values).
    """
    heads, count, dim = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    outputs = []
    on_cpu = query.device.type == "cpu"
    block_size = _CPU_QUERY_BLOCK if on_cpu else _QUERY_BLOCK
    restricted = how.window is not None or how.chunk is not None
    first, positions = 0, segment.positions if restricted else []
    for begin in range(0, count, block_size):
        size = min(block_size, count - begin)
        mask = step.mask(query, segment, begin, size, how)
        rows, total = mask.shape
        if total > keys.shape[1]:  # keys of a latent layer have no spare capacity
            total = keys.shape[1]
            mask = mask[:, :total]
        if restricted:  # no query of the block attends to earlier keys
            oldest = how.first_visible(min(positions[begin : begin + size]))
            first = oldest // _KEY_BLOCK * _KEY_BLOCK
            mask, total = mask[:, first:], total - first
        block = query.narrow(1, begin, size)
        visible_keys, visible_values = (part.narrow(1, first, total) for part in (keys, values))
        if on_cpu or not how.is_plain:
            # Scaling the queries and masking only the columns that need it saves two passes over
            # the scores.
            scaled = F.pad(block * how.scaling, (0, 0, 0, rows - size))
            scaled = scaled.reshape(kv_heads, group * rows, dim)
            scores = torch.matmul(scaled, visible_keys.transpose(1, 2))
            if how.is_plain:
                scores = scores.view(kv_heads, group, rows, total)
                unmasked = 0 if restricted else min(segment.past + begin, segment.branch_start)
                scores[..., unmasked:].add_(mask[:, unmasked:])
                weights = scores.softmax(-1).view(kv_heads, group * rows, total)
            else:
                weights = _weights(scores, how, mask.repeat(group, 1))
            out = torch.matmul(weights, visible_values).view(heads, rows, -1)[:, :size]
            del scores, weights  # before the next block allocates its own
        else:
            # With a mask, `enable_gqa` falls back to the kernel that materialises all scores.
            out = F.scaled_dot_product_attention(
                block.unsqueeze(0),
                visible_keys.repeat_interleave(group, 0).unsqueeze(0),
                visible_values.repeat_interleave(group, 0).unsqueeze(0),
                attn_mask=mask,
                scale=how.scaling,
            )[0]
        outputs.append(out.transpose(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
